"""Pictures of predictions, for each library."""

import cv2
import numpy as np
import pytest
import torch

from downstream import narrow
from mmorepa import switch_to_deploy
from mmorepa.checkpoints import build_model
from mmorepa.engine.prediction import Predictor, predict_files, read_image
from mmorepa.engine.run import load_config
from mmorepa.errors import UserError
from support import ROOT

DIGITS = {
    'mmpretrain': 'orepa-resnet18_1xb64-10e_digits',
    'mmdet': 'retinanet_orepa-r18_fpn_1xb8-8e_digits',
    'mmseg': 'pspnet_orepa-r18-d8_1xb4-600_digits-128x128',
}


def config(library):
    path = ROOT / 'configs' / 'digits' / f'{DIGITS[library]}.py'
    cfg = load_config(path)
    if library == 'mmpretrain':
        small = {'model.backbone.base_channels': 4, 'model.head.in_channels': 32}
    else:
        small = narrow(cfg)
    cfg.merge_from_dict(small)
    if library == 'mmdet':
        cfg.model.test_cfg.score_thr = 0.0  # it has learned nothing
    return cfg


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'image.png'
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def saved(cfg, tmp_path, change=lambda model: model):
    path = tmp_path / 'model.pth'
    model = build_model(cfg)
    if 'bbox_head' in cfg.model:
        model.bbox_head.init_weights()  # without that its boxes have no area
    torch.save(dict(state_dict=change(model).state_dict()), path)
    return path


@pytest.mark.parametrize(
    'form', [lambda model: model, switch_to_deploy], ids=['training', 'deploy']
)
@pytest.mark.parametrize('library', DIGITS)
def test_a_picture_is_drawn(library, form, image, tmp_path):
    cfg = config(library)
    (path,) = predict_files(cfg, saved(cfg, tmp_path, form), [image], tmp_path / 'out', score=0.0)
    assert path == tmp_path / 'out' / 'image.png'
    drawn, plain = cv2.imread(str(path)), cv2.imread(str(image))
    if library != 'mmpretrain':
        assert drawn.shape == plain.shape
        assert (drawn != plain).any()
    else:
        assert min(drawn.shape[:2]) >= 224


def test_predictions_are_the_librarys_own(image, tmp_path):
    cfg = config('mmpretrain')
    predictor = Predictor(cfg, saved(cfg, tmp_path))
    sample = predictor.predict(cv2.imread(str(image)))
    assert sample.pred_score.shape == (10,)
    assert predictor.meta.get('classes') is None or len(predictor.meta['classes']) == 10


@pytest.mark.parametrize(
    'library, kind, first',
    [
        ('mmpretrain', 'CIFAR10', 'airplane'),
        ('mmdet', 'VOCDataset', 'aeroplane'),
        ('mmseg', 'CityscapesDataset', 'road'),
    ],
)
def test_the_data_set_names_the_classes(library, kind, first, tmp_path):
    """A checkpoint that training did not write says nothing of them."""
    cfg = config(library)
    cfg.test_dataloader.dataset.pop('metainfo', None)
    cfg.test_dataloader.dataset.type = kind
    assert Predictor(cfg, saved(cfg, tmp_path)).meta['classes'][0] == first


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ConcatDataset'])
def test_a_test_set_inside_of_another(wrapper, image, tmp_path):
    cfg = config('mmpretrain')
    plain = Predictor(cfg, saved(cfg, tmp_path))
    dataset = cfg.test_dataloader.dataset
    inside = (
        dict(dataset=dataset, times=2) if wrapper == 'RepeatDataset' else dict(datasets=[dataset])
    )
    cfg.test_dataloader.dataset = dict(type=wrapper, **inside)
    wrapped = Predictor(cfg, tmp_path / 'model.pth')
    scores = (p.predict(cv2.imread(str(image))).pred_score for p in (plain, wrapped))
    assert torch.equal(*scores)
    assert wrapped.meta == plain.meta


def test_an_image_is_read_as_the_pipeline_reads_it(image, tmp_path):
    """A network of one channel, which colours do not fit."""
    cfg = config('mmpretrain')
    cfg.model.backbone.in_channels = 1
    cfg.data_preprocessor.update(mean=[127.5], std=[127.5], to_rgb=False)
    load = cfg.test_dataloader.dataset.pipeline[0]
    load.update(color_type='grayscale', to_float32=True)
    predict_files(cfg, saved(cfg, tmp_path), [image], tmp_path / 'out')
    assert (tmp_path / 'out' / 'image.png').is_file()
    found = read_image(image, **Predictor(cfg, tmp_path / 'model.pth').reading)
    gray = cv2.imread(str(image), cv2.IMREAD_GRAYSCALE)
    assert found.dtype == np.float32 and np.array_equal(found, gray)


def refused(tmp_path, image, case):
    (tmp_path / 'empty.png').touch()
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'image.png').touch()
    (tmp_path / 'other').mkdir()
    twin = tmp_path / 'other' / 'twin.png'
    return dict(
        missing=([tmp_path / 'none.png'], r'no image at .*none\.png: check the path'),
        empty=([tmp_path / 'empty.png'], r'empty\.png is no image that can be read'),
        text=([tmp_path / 'text.png'], r'text\.png is no image that can be read'),
        there=([image], r'image\.png exists already: choose another name or pass --force'),
        twins=([twin, twin.with_suffix('.jpg')], 'have one name'),
    )[case]


@pytest.mark.parametrize('case', ['missing', 'empty', 'text', 'there', 'twins'])
def test_what_cannot_be_done_is_told_first(case, image, tmp_path):
    images, message = refused(tmp_path, image, case)
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(UserError, match=message) as info:
        predict_files(config('mmpretrain'), tmp_path / 'no.pth', images, tmp_path / 'out')
    assert '\n' not in str(info.value)
    assert sorted(tmp_path.rglob('*')) == before


def thin(cfg, model):
    """An image that becomes too large when its shorter side is resized."""


def no_packing(cfg, model):
    cfg.test_dataloader.dataset.pipeline = []


def no_deviation(cfg, model):
    cfg.data_preprocessor.std = [0, 0, 0]


def negative_variance(cfg, model):
    model.backbone.bn1.running_var.neg_()


@pytest.mark.parametrize(
    'spoil, message',
    [
        (thin, r'thin\.png, 5000x1 pixels, cannot be predicted or drawn: '),
        (no_packing, 'batches that its data_preprocessor does not take, end the pipeline with'),
        (no_deviation, 'data_preprocessor gives values that are not finite: .* mean and std'),
        (negative_variance, 'backbone gives values that are not finite: .* running statistics'),
    ],
)
def test_what_cannot_be_predicted_leaves_nothing(spoil, message, image, tmp_path):
    """The first image, which may be fine, gets no picture either."""
    cv2.imwrite(str(tmp_path / 'thin.png'), np.zeros((1, 5000, 3), np.uint8))
    images = [image, tmp_path / 'thin.png'] if spoil is thin else [image]
    cfg = config('mmpretrain')
    path = saved(cfg, tmp_path, lambda model: spoil(cfg, model) or model)
    with pytest.raises(UserError, match=message) as info:
        predict_files(cfg, path, images, tmp_path / 'out')
    assert '\n' not in str(info.value)
    assert not (tmp_path / 'out').exists()
