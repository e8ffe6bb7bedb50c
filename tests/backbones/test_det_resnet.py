"""OREPAResNet and OREPAResNeXt in mmdet."""

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

import mmorepa.det  # noqa: F401  (registers)
from backbones.resnet_contract import DOWNSTREAM, NARROW, DownstreamContract, image, names, shapes
from mmorepa import squeeze


class TestDetResNet(DownstreamContract):
    models = MODELS
    aliases = {'OREPAResNetV1d': dict(deep_stem=True, avg_down=True)}

    @pytest.fixture(params=DOWNSTREAM.values(), ids=DOWNSTREAM)
    def variant(self, request):
        return request.param

    def test_defaults_are_the_library_s(self):
        model = self.build(depth=18)
        assert model.zero_init_residual
        assert model.norm_eval
        assert [out.shape[-1] for out in model(image(64))] == [16, 8, 4, 2]


@pytest.mark.parametrize(
    'base, change',
    [
        ('retinanet_r50_fpn', "dict(type='OREPAResNet')"),
        ('faster-rcnn_r50_fpn', "dict(type='OREPAResNet')"),
        ('faster-rcnn_r50-caffe-c4', "dict(type='OREPAResNet')"),
    ],
)
def test_configs_change_only_the_type(base, change):
    text = f"_base_ = 'mmdet::_base_/models/{base}.py'\n"
    theirs = Config.fromstring(text, '.py').model.backbone
    ours = Config.fromstring(f'{text}model = dict(backbone={change})', '.py').model.backbone
    model, plain = (MODELS.build({**backbone, **NARROW}) for backbone in (ours, theirs))
    assert names(model, nn.Conv2d) == []
    assert shapes(squeeze(model)) == shapes(plain)
    trained = [p.requires_grad for p in plain.parameters()]
    assert [p.requires_grad for p in model.parameters()] == trained
