"""The libraries find this package's configs by their names."""

import mmpretrain
import numpy as np
import pytest
import torch
import yaml
from mmdet.apis import DetInferencer
from mmpretrain import ImageClassificationInferencer
from mmseg.apis import MMSegInferencer, inference_model, init_model

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401
from downstream import narrow
from mmorepa import switch_to_deploy
from mmorepa.checkpoints import build_model
from mmorepa.convs import ReparamConv2d
from mmorepa.datasets.digits import write_digits
from mmorepa.engine.run import load_config
from mmorepa.errors import UserError
from support import ROOT, make_trained_like

RETINANET = 'retinanet_orepa-r18_fpn_1x_coco'
PSPNET = 'pspnet_orepa-r18-d8_4xb2-80k_cityscapes-512x1024'


def blocks(model):
    return sum(isinstance(module, ReparamConv2d) for module in model.modules())


def test_mmpretrain_lists_and_builds_them():
    names = mmpretrain.list_models('*orepa*')
    assert {path.stem for path in (ROOT / 'configs/imagenet').glob('orepa*.py')} <= set(names)
    assert not mmpretrain.list_models('*orepa*coco*')
    model = mmpretrain.get_model('orepa-resnet50_4xb64-120e_in1k')
    assert blocks(model) == 53


def test_mmpretrains_inferencer():
    infer = ImageClassificationInferencer('orepa-resnet18_4xb64-120e_in1k', device='cpu')
    image = np.zeros((64, 64, 3), np.uint8)
    assert 0 <= infer(image)[0]['pred_label'] < 1000


def test_weights_that_come_with_the_package(tmp_path):
    """They have the accuracy that the metafile states."""
    name = 'orepa-resnet18-w0.125_1xb64-10e_digits'
    metafile = yaml.safe_load((ROOT / 'configs/digits/metafile.yml').read_text())
    (stated,) = (model for model in metafile['Models'] if model['Name'] == name)
    write_digits(tmp_path, ['imagenet'])
    images = sorted((tmp_path / 'imagenet/val').glob('*/*.png'))
    infer = ImageClassificationInferencer(name, pretrained=True, device='cpu')
    found = infer([str(image) for image in images], batch_size=64)
    right = sum(own['pred_class'] == image.parent.name for own, image in zip(found, images))
    accuracy = stated['Results'][0]['Metrics']['Top 1 Accuracy']
    assert round(100 * right / len(images), 2) == accuracy


@pytest.mark.parametrize(
    'inferencer, folder, name',
    [(DetInferencer, 'coco', RETINANET), (MMSegInferencer, 'cityscapes', PSPNET)],
    ids=['mmdet', 'mmseg'],
)
def test_the_inferencers_of_mmdet_and_mmseg(inferencer, folder, name, tmp_path):
    model = make_trained_like(build_model(load_config(ROOT / 'configs' / folder / f'{name}.py')))
    weights = tmp_path / 'weights.pth'
    meta = dict(dataset_meta=dict(classes=('one', 'two'), palette=[(0, 0, 0), (9, 9, 9)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), weights)
    found = inferencer(name, weights=str(weights), device='cpu')
    assert blocks(found.model) == 17
    torch.save(dict(state_dict=switch_to_deploy(model).state_dict(), meta=meta), weights)
    with pytest.raises(UserError, match='as a deploy form whose BatchNorms are folded'):
        inferencer(name, weights=str(weights), device='cpu')
    with pytest.raises(ValueError, match='Cannot find model: no-such-name'):
        inferencer('no-such-name', device='cpu')


def test_inference_model_of_mmseg(tmp_path):
    """It takes the pipeline from ``test_pipeline`` of the config, by that name."""
    path = ROOT / 'configs/digits/pspnet_orepa-r18-d8_1xb4-600_digits-128x128.py'
    cfg = load_config(path)
    cfg.merge_from_dict(narrow(cfg))
    found = inference_model(init_model(cfg, device='cpu'), np.zeros((32, 32, 3), np.uint8))
    assert found.pred_sem_seg.shape == (32, 32)
