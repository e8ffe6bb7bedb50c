"""torch.export takes a model with blocks, also after their weights were read."""

import copy

import pytest
import torch
from torch import nn

import mmorepa
from mmorepa.convs.reparam import ReparamConv2d

EXPORT_TOLERANCE = 1e-5


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('block', ['DBB', 'OREPA', 'RepVGG'])
def test_strict_export_after_the_weights_were_read(block, training):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    mmorepa.reparameterize(model, block=block)
    assert any(isinstance(module, ReparamConv2d) for module in model.modules())
    model.train(training)
    image = torch.randn(2, 3, 8, 8)
    assert model[0].weight.shape == (4, 3, 3, 3)
    # In a copy: the statistics move, and DBB pads with them.
    expected = copy.deepcopy(model)(image)
    program = torch.export.export(model, (image,), strict=True).module()
    torch.testing.assert_close(program(image), expected, rtol=0, atol=EXPORT_TOLERANCE)
