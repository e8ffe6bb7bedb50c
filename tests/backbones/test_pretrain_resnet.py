"""OREPAResNet and OREPAResNeXt in mmpretrain."""

import pytest
import torch
from mmpretrain.models import ResNet
from mmpretrain.registry import MODELS

from backbones.resnet_contract import COMMON, ResNetContract, image, shapes
from mmorepa import OREPAConv2d, squeeze
from mmorepa.pretrain import OREPAResNet

RESNEXT = dict(type='OREPAResNeXt', depth=50, groups=8, width_per_group=4)


class TestPretrainResNet(ResNetContract):
    models = MODELS
    aliases = {
        'OREPAResNetV1c': dict(deep_stem=True),
        'OREPAResNetV1d': dict(deep_stem=True, avg_down=True),
    }
    width_of_4 = dict(width_per_group=4)

    @pytest.fixture(params=[*COMMON.values(), RESNEXT], ids=[*COMMON, 'resnext'])
    def variant(self, request):
        return request.param

    @pytest.mark.parametrize('type', ['OREPAResNet', *aliases, 'OREPAResNeXt'])
    def test_residuals_are_not_zero_initialised_by_default(self, type):
        assert not self.build(type, depth=50).zero_init_residual
        assert self.build(type, depth=50, zero_init_residual=True).zero_init_residual

    @pytest.mark.parametrize(
        'kwargs, sizes',
        [
            (dict(), [2]),
            (dict(out_indices=(0, 1, 2, 3)), [16, 8, 4, 2]),
            (dict(dilations=(1, 1, 2, 4), strides=(1, 2, 1, 1)), [8]),
        ],
    )
    def test_output_sizes(self, kwargs, sizes):
        assert [out.shape[-1] for out in self.build(depth=18, **kwargs)(image(64))] == sizes


def test_full_size_keys():
    """At the published widths, the 7x7 stem included."""
    squeezed = squeeze(OREPAResNet(18))
    assert shapes(squeezed) == shapes(ResNet(18))
    assert squeezed.conv1.weight.shape == torch.Size([64, 3, 7, 7])


def test_where_by_kernel_size():
    reparam = dict(type='OREPA', where=dict(name='layer', kernel_size=[3, 5]))
    model = OREPAResNet(50, base_channels=4, stem_channels=4, reparam=reparam)
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, OREPAConv2d)}
    assert [name.rpartition('.')[2] for name in blocks] == ['conv2'] * 16
    assert {block.kernel_size for block in blocks.values()} == {(3, 3)}
