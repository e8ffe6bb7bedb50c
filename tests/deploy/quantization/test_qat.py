"""Fake quantization in the backbone: what it starts from, and what becomes of it."""

import copy

import pytest
import torch
from mmpretrain.models import DenseNet
from torch import nn
from torch.ao.nn.intrinsic import quantized as intrinsic
from torch.ao.quantization import disable_fake_quant, disable_observer
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa.backbones.det_resnet import OREPAResNet as DetResNet
from mmorepa.checkpoints.conversion import count_parameters
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import squeeze, switch_to_deploy, verify
from mmorepa.deploy.quantization import qat as qat_module
from mmorepa.deploy.quantization.layers import Noise
from mmorepa.deploy.quantization.qat import (
    folded,
    int8_qat_backbone,
    with_fake_quantization,
)
from mmorepa.errors import UserError
from support import make_trained_like

LEAST_SQNR = 15.0  # dB; a wrong scale or a lost bias leaves some 0 dB


@pytest.fixture
def model(config):
    return make_trained_like(build_model(config()))


@pytest.fixture
def images():
    return torch.randn(8, 3, 32, 32)


@pytest.fixture
def qat(model, images):
    """After one look at the images."""
    qat = with_fake_quantization(copy.deepcopy(model)).eval()
    qat.backbone(images)
    return qat.apply(disable_observer)


def test_without_rounding_it_is_the_trained_network(model, qat, images):
    qat.apply(disable_fake_quant)
    assert verify(model, qat, images).within(1e-4)
    assert count_parameters(qat) == count_parameters(squeeze(model))


def test_rounding_is_there_and_small(model, qat, images):
    noise = Noise()
    with torch.no_grad():
        noise.add(model(images), qat(images))
    assert LEAST_SQNR < noise.sqnr < 60


def test_int8_computes_what_was_trained(qat, images):
    noise = Noise()
    with torch.no_grad():
        backbone = int8_qat_backbone(qat)
        noise.add(qat.backbone(images)[0], backbone(images)[0])
    assert sum(isinstance(m, intrinsic.ConvReLU2d) for m in backbone.modules()) > 0
    assert not any(isinstance(m, nn.Conv2d) for m in backbone.modules())
    # A number on the edge between two steps may be rounded either way.
    assert noise.sqnr > 30


def test_folded_is_the_deploy_form(config, model, qat, images):
    cfg = config()
    cfg.model.update(architecture=cfg.model.type, type='QATForm')
    deploy = folded(qat, cfg)
    assert verify(switch_to_deploy(model), deploy, images).within(1e-4)


class Mixed(nn.Module):
    """What has no norm behind it, no bias, or is no convolution."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        return self.norm(self.conv2(self.bn1(self.conv1(x)).relu())) * self.scale


def test_folded_has_all_of_the_backbone(config, images, monkeypatch):
    model = nn.Module()
    model.backbone = Mixed()
    make_trained_like(model)
    nn.init.normal_(model.backbone.scale)
    fresh = nn.Module()
    fresh.backbone = Mixed()
    trained = with_fake_quantization(copy.deepcopy(model)).eval()
    monkeypatch.setattr(qat_module, 'build_model', lambda cfg: fresh)
    cfg = config()
    cfg.model.update(architecture=cfg.model.type, type='QATForm')
    deploy = folded(trained, cfg)
    with torch.no_grad():
        torch.testing.assert_close(deploy.backbone(images), model.eval().backbone(images))


def test_norms_that_cannot_be_folded_are_named_first():
    """Of DenseNet, whose BatchNorms stand before an activation and a convolution."""
    model = nn.Module()
    model.backbone = DenseNet(dict(growth_rate=4, depths=[2], init_channels=8))
    with pytest.raises(UserError, match=r'norm1 of DenseNet is .* follows no conv') as raised:
        with_fake_quantization(model)
    assert '\n' not in str(raised.value)


def test_ranges_begin_at_the_folded_weights(qat, model):
    deploy = switch_to_deploy(model)
    for name, module in qat.backbone.named_modules():
        if hasattr(module, 'weight_fake_quant'):
            observer = module.weight_fake_quant.activation_post_process
            weight = deploy.backbone.get_submodule(name).weight.flatten(1)
            peaks = torch.maximum(-observer.min_val, observer.max_val)
            assert torch.allclose(peaks, weight.abs().amax(1), rtol=1e-4), name


def test_state_dict_fits_a_fresh_one(config, qat):
    cfg = config()
    cfg.model.update(architecture=cfg.model.type, type='QATForm')
    build_model(cfg).load_state_dict(qat.state_dict())


@pytest.mark.parametrize('norm_eval, frozen_stages', [(True, -1), (False, 1)])
def test_frozen_statistics_stay_frozen(norm_eval, frozen_stages):
    """Detectors have both: a step in training mode leaves those statistics as they were."""
    model = nn.Module()
    model.backbone = DetResNet(
        18, base_channels=4, stem_channels=4, norm_eval=norm_eval, frozen_stages=frozen_stages
    )
    with_fake_quantization(model).train()
    before = {
        name: module.running_mean.clone()
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
    }
    model.backbone(torch.randn(4, 3, 32, 32))
    moved = [n for n, mean in before.items() if not model.get_submodule(n).running_mean.equal(mean)]
    assert len(before) == 20
    if norm_eval:
        assert not moved
    else:
        assert len(moved) == 15  # all but those of the stem and the first stage
        assert not any('layer1' in name or name.startswith('backbone.conv1') for name in moved)


def test_a_network_without_norms_gets_one_line(model):
    with pytest.raises(UserError, match='OREPAResNet is in deploy form') as raised:
        with_fake_quantization(switch_to_deploy(model))
    assert '\n' not in str(raised.value)
