"""Stock configs of the libraries with one line changed: they load plain weights, train, convert."""

import copy
import importlib
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

import mmorepa.det
import mmorepa.pretrain
import mmorepa.seg  # noqa: F401
from mmorepa import switch_to_deploy, verify
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import ReparamConv2d
from support import make_trained_like

FLOAT32 = 1e-5  # relative to the largest output
SIDE = 64  # of an image in pixels


class Stock(NamedTuple):
    """A config of a library, and the line that is changed.

    Attributes:
        config (str): The library's name for it.
        change (dict): As ``--cfg-options`` takes it.
        blocks (int): The number of convolutions that become blocks.
        options (dict): What makes it small; the code that it runs is the same.
    """

    config: str
    change: dict
    blocks: int
    options: dict = {}


OREPA = {'model.backbone.type': 'OREPAResNet'}
V1C = {'model.backbone.type': 'OREPAResNetV1c'}
EVERY_CONV = {'model.backbone.conv_cfg': dict(type='OREPAConv2d')}
#: A deep linear stem of fewer channels could not have every 7x7 kernel.
NARROW = {'model.backbone.base_channels': 4, 'model.backbone.stem_channels': 32}

STOCK = [
    Stock('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', OREPA, 17),
    Stock('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', OREPA, 53),
    Stock('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', OREPA, 53),
    Stock('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', OREPA, 53),
    Stock('mmdet::atss/atss_r50_fpn_1x_coco.py', OREPA, 53),
    Stock('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', EVERY_CONV, 26),
    Stock('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py', V1C, 55),
    Stock('mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py', V1C, 55),
    Stock('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', V1C, 55),
    Stock(
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        V1C,
        19,
        {
            'model.backbone': dict(
                _delete_=True,
                type='ResNetV1c',
                depth=18,
                base_channels=4,
                stem_channels=32,
                norm_cfg=dict(type='BN'),
            ),
            'model.decode_head.in_channels': [4, 8, 16, 32],
            'model.decode_head.channels': 8,
        },
    ),
    Stock(
        'mmpretrain::resnet/resnet18_8xb32_in1k.py',
        OREPA,
        17,
        {**NARROW, 'model.head.in_channels': 32},
    ),
    Stock(
        'mmpretrain::resnet/resnet50_8xb32_in1k.py',
        OREPA,
        53,
        {**NARROW, 'model.head.in_channels': 128},
    ),
    Stock('mmpretrain::regnet/regnetx-400mf_8xb128_in1k.py', EVERY_CONV, 71),
]


def changed(stock):
    """The stock config as a user has it, and with its line changed; both small."""
    plain, ours = (Config.fromfile(_path(stock.config)) for _ in range(2))
    small = {**_narrow(plain), **stock.options}
    plain.merge_from_dict(small)
    ours.merge_from_dict({**small, **stock.change})
    return plain, ours


def _path(name):
    library, _, path = name.partition('::')
    module = importlib.import_module(library)
    return Path(module.__file__).parent / '.mim' / 'configs' / path


def _narrow(cfg):
    """Options that make the backbone of a detector or a segmentor narrow."""
    if 'depth' not in cfg.model.backbone or cfg.default_scope == 'mmpretrain':
        return {}
    widths = [4 * (1 if cfg.model.backbone.depth < 50 else 4) * 2**stage for stage in range(4)]
    if cfg.default_scope == 'mmdet':
        return {**NARROW, 'model.neck.in_channels': widths}
    head = cfg.model.decode_head
    all_stages = isinstance(head.in_channels, list)
    options = {
        'model.decode_head.in_channels': widths if all_stages else widths[3],
        'model.decode_head.channels': 8,
        'model.auxiliary_head.in_channels': widths[2],
        'model.auxiliary_head.channels': 8,
    }
    if 'c1_in_channels' in head:
        options['model.decode_head.c1_in_channels'] = widths[0]
    return {**NARROW, **options}


def batch(model):
    """Two images with what the model's library wants to know of them."""
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        size = [[3, SIDE, SIDE]] * 2
        masks = hasattr(getattr(model, 'roi_head', None), 'mask_head')
        return demo_mm_inputs(2, size, num_items=[2, 1], num_classes=5, with_mask=masks)
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(2)]
    if not hasattr(model, 'decode_head'):
        return dict(
            inputs=torch.stack(images), data_samples=[DataSample().set_gt_label(i) for i in (1, 2)]
        )
    samples = []
    for _ in images:
        truth = PixelData(data=torch.randint(0, 5, (1, SIDE, SIDE)))
        meta = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))
        samples.append(SegDataSample(gt_sem_seg=truth, metainfo=meta))
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize('stock', STOCK, ids=lambda stock: stock.config.rpartition('/')[2])
def test_one_line_is_enough(stock, tmp_path):
    plain_cfg, cfg = changed(stock)
    torch.manual_seed(0)
    plain = make_trained_like(build_model(plain_cfg))
    weights = tmp_path / 'plain.pth'
    state_dict = plain.state_dict()
    if 'caffe' in stock.config:  # the real file has a bias in front of each BatchNorm
        convs = [k for k, v in state_dict.items() if k.startswith('backbone.') and v.dim() == 4]
        state_dict |= {k.replace('weight', 'bias'): torch.zeros(len(state_dict[k])) for k in convs}
    torch.save(dict(state_dict=state_dict), weights)
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=str(weights), prefix='backbone.'
    )
    cfg.model.pop('pretrained', None)

    model = build_model(cfg)
    model.init_weights()
    assert sum(isinstance(module, ReparamConv2d) for module in model.modules()) == stock.blocks
    image = torch.randn(1, 3, SIDE, SIDE)
    assert verify(plain.backbone, model.backbone, image).relative < FLOAT32

    data = batch(model)
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    losses = model.train().train_step(copy.deepcopy(data), wrapper)
    assert all(torch.tensor(value).isfinite().all() for value in losses.values())
    moved = [n for n, p in model.backbone.named_parameters() if not torch.equal(p, before[n])]
    assert any('kernel.' in name for name in moved)

    with torch.no_grad():
        model.eval().test_step(copy.deepcopy(data))
    deployed = switch_to_deploy(model, inplace=False)
    assert not any(isinstance(module, ReparamConv2d) for module in deployed.modules())
    assert verify(model.backbone, deployed.backbone, image).within()
