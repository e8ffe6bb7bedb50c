"""OREPAResNet and OREPAResNeXt in mmseg."""

import pytest
from mmengine.config import Config
from mmseg.registry import MODELS
from torch import nn

import mmorepa.seg  # noqa: F401  (registers)
from backbones.resnet_contract import DOWNSTREAM, NARROW, DownstreamContract, image, names, shapes
from mmorepa import OREPAConv2d, squeeze

D8 = dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
VARIANTS = {
    **DOWNSTREAM,
    'contract_dilation': dict(D8, contract_dilation=True, deep_stem=True),
    'multi_grid': dict(D8, multi_grid=(1, 2, 4)),
}


class TestSegResNet(DownstreamContract):
    models = MODELS
    aliases = {
        'OREPAResNetV1c': dict(deep_stem=True),
        'OREPAResNetV1d': dict(deep_stem=True, avg_down=True),
    }

    @pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
    def variant(self, request):
        return request.param

    @pytest.mark.parametrize(
        'kwargs, dilations',
        [
            (dict(), [(2,) * 6, (4,) * 3]),
            (dict(contract_dilation=True), [(1, *(2,) * 5), (2, 4, 4)]),
            (dict(multi_grid=(1, 2, 4)), [(2,) * 6, (1, 2, 4)]),
        ],
        ids=['plain', 'contract_dilation', 'multi_grid'],
    )
    def test_dilations_of_the_last_stages(self, kwargs, dilations):
        model = self.build(**D8, **kwargs)
        for stage, wanted in zip((model.layer3, model.layer4), dilations):
            convs = [block.conv2 for block in stage]
            assert {type(conv) for conv in convs} == {OREPAConv2d}
            assert [conv.dilation for conv in convs] == [(d, d) for d in wanted]
            assert [conv.padding for conv in convs] == [(d, d) for d in wanted]
        assert [out.shape[-1] for out in model(image(64, batch=2))] == [16, 8, 8, 8]


@pytest.mark.parametrize(
    'base, change',
    [
        ('pspnet_r50-d8', "dict(type='OREPAResNetV1c')"),
        ('pspnet_r50-d8', "dict(type='OREPAResNet', deep_stem=True)"),
        ('deeplabv3plus_r50-d8', "dict(type='OREPAResNetV1c')"),
    ],
)
def test_configs_change_only_the_type(base, change):
    text = f"_base_ = 'mmseg::_base_/models/{base}.py'\n"
    theirs = Config.fromstring(text, '.py').model.backbone
    ours = Config.fromstring(f'{text}model = dict(backbone={change})', '.py').model.backbone
    model, plain = (MODELS.build({**backbone, **NARROW}) for backbone in (ours, theirs))
    assert theirs.type == 'ResNetV1c'
    assert names(model, nn.Conv2d) == []
    assert shapes(squeeze(model)) == shapes(plain)
