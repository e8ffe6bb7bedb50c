"""Int8 TorchScript programs: int8 kernels in the backbone, near the float network."""

import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic import quantized as intrinsic
from torch.ao.nn.quantized import Conv2d

from mmorepa.backbones.pretrain_resnet import OREPAResNet
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import switch_to_deploy
from mmorepa.deploy.export import TensorModel
from mmorepa.deploy.quantization import Settings, open_int8
from mmorepa.deploy.quantization.layers import Noise
from mmorepa.deploy.quantization.torch_backend import int8_backbone, quantize_torch
from mmorepa.errors import UserError
from support import make_trained_like, on_a_full_disk

LEAST_SQNR = 15.0  # dB; a wrong scale or a lost bias leaves some 0 dB


@pytest.fixture
def model(config):
    return switch_to_deploy(make_trained_like(build_model(config())))


@pytest.fixture
def images():
    return [torch.randn(8, 3, 32, 32), torch.randn(3, 3, 40, 24)]


@pytest.mark.parametrize('per_channel, method', [(True, 'histogram'), (False, 'minmax')])
def test_backbone(model, images, per_channel, method):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    backbone = int8_backbone(
        model.backbone, Settings('torch', per_channel=per_channel, method=method), images
    )
    convs = [m for m in backbone.modules() if isinstance(m, (Conv2d, intrinsic.ConvReLU2d))]
    assert len(convs) == 20
    scheme = torch.per_channel_affine if per_channel else torch.per_tensor_affine
    assert all(conv.weight().qscheme() == scheme for conv in convs)
    assert not any(isinstance(module, nn.Conv2d) for module in backbone.modules())
    noise = Noise()
    with torch.no_grad():
        for image in images:
            noise.add(model.backbone(image)[0], backbone(image)[0])
    assert noise.sqnr > LEAST_SQNR
    # The float model is as it was.
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_file_runs_by_itself(model, images, tmp_path):
    quantize_torch(model, tmp_path / 'int8.pt', Settings('torch', method='minmax'), images)
    program = torch.jit.load(tmp_path / 'int8.pt')
    assert 'quantized::conv2d' in str(program.inlined_graph)
    for image in images:
        noise = Noise()
        with torch.no_grad():
            (expected,), (found,) = (
                TensorModel(model)(image),
                open_int8(tmp_path / 'int8.pt')(image),
            )
        noise.add(expected, found)
        assert noise.sqnr > LEAST_SQNR


def test_a_backbone_that_cannot_be_traced_gets_one_line(images):
    backbone = switch_to_deploy(OREPAResNet(18, base_channels=8, stem_channels=8, with_cp=True))
    with pytest.raises(UserError, match='cannot trace OREPAResNet .* set with_cp=False') as raised:
        int8_backbone(backbone, Settings('torch'), images)
    assert '\n' not in str(raised.value)


def test_a_full_disk(model, images, tmp_path):
    path, settings = tmp_path / 'int8.pt', Settings('torch', method='minmax')
    said = on_a_full_disk(lambda: quantize_torch(model, path, settings, images))
    assert f'{path} cannot be written: File too large' in said
    assert not list(tmp_path.iterdir())
