"""Other code in the place of a model's network: predictions are those of that code."""

import copy

import pytest
import torch

import mmorepa.det
import mmorepa.seg  # noqa: F401
from downstream import SIZE, narrow
from mmorepa.checkpoints.models import build_model
from mmorepa.deploy.export import TensorModel
from mmorepa.deploy.quantization import open_int8, replaced_network
from mmorepa.engine.run import load_config
from mmorepa.errors import UserError
from support import CONFIG, ROOT

CONFIGS = {
    'classifier': CONFIG,
    'single-stage': ROOT / 'configs/digits/retinanet_orepa-r18_fpn_1xb8-8e_digits.py',
    'two-stage': ROOT / 'configs/coco/faster-rcnn_orepa-r50_fpn_1x_coco.py',
    'segmentor': ROOT / 'configs/digits/pspnet_orepa-r18-d8_1xb4-600_digits-128x128.py',
}
NARROW = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 64,
}


@pytest.fixture(params=CONFIGS)
def model(request):
    cfg = load_config(CONFIGS[request.param])
    cfg.merge_from_dict(NARROW if request.param == 'classifier' else narrow(cfg))
    if request.param == 'single-stage':
        cfg.model.test_cfg.score_thr = 0  # lets every box through
    if request.param == 'two-stage':
        cfg.model.test_cfg.rcnn.score_thr = 0
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    # Boxes of heads with other values leave the image and are dropped.
    model.init_weights()
    return model


def predict(model):
    """What a model makes of a batch of the form its library's data loaders give."""
    if model.__class__.__name__ == 'ImageClassifier':
        from mmpretrain.structures import DataSample as Sample
    elif hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    samples = [
        Sample(metainfo=dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), scale_factor=(1, 1)))
        for _ in range(2)
    ]
    image = torch.randint(256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.test_step(dict(inputs=list(image.to(torch.uint8)), data_samples=samples))


def numbers(samples):
    """The numbers in a prediction."""
    found = []
    for sample in samples:
        if 'pred_score' in sample:
            found.append(sample.pred_score)
        elif 'seg_logits' in sample:
            found.append(sample.seg_logits.data)
        else:
            found += [sample.pred_instances.bboxes, sample.pred_instances.scores]
    return found


def test_predictions_come_from_the_code_in_its_place_and_only_there(model):
    expected = numbers(predict(model))
    assert all(tensor.numel() for tensor in expected)
    network = TensorModel(copy.deepcopy(model))
    seen = []

    def execute(image):
        seen.append(tuple(image.shape))
        return network(image)

    with torch.no_grad(), replaced_network(model, execute):
        assert not differ(expected, numbers(predict(model)))
    assert seen == [(2, 3, SIZE, SIZE)]
    with torch.no_grad(), replaced_network(model, lambda x: [-tensor for tensor in network(x)]):
        assert differ(expected, numbers(predict(model)))
    assert not differ(expected, numbers(predict(model)))


def differ(first, second):
    """Whether predictions differ, in number or in value."""
    return any(
        before.shape != after.shape or not torch.allclose(before, after, atol=1e-5)
        for before, after in zip(first, second, strict=True)
    )


def test_refuses_models_without_a_head():
    with pytest.raises(UserError, match='ReLU is no classifier, detector or segmentor'):
        with replaced_network(torch.nn.ReLU(), lambda image: [image]):
            pass


@pytest.mark.parametrize(
    'name, message',
    [('missing.onnx', 'no model at .*missing.onnx'), ('here.txt', 'wanted a .onnx or .pt file')],
)
def test_refuses_other_files(tmp_path, name, message):
    (tmp_path / 'here.txt').touch()
    with pytest.raises(UserError, match=message):
        open_int8(tmp_path / name)
