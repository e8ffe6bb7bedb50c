"""The convolution around oneDNN's fault with strided 1x1 kernels."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from mmorepa.convs.conv2d import conv2d
from support import ROOT

GRADIENTS_AGREE = 1e-4

#: Ends in a signal where oneDNN writes past its workspace, and with a line where a gradient is
#: wrong.
STRIDED_1X1 = f"""
import sys

import torch

from mmorepa.convs import OREPAConv2d, RepVGGConv2d, TweakedOREPAConv2d

MADE = {{
    'offline, 1x1': lambda: OREPAConv2d(3, 8, 1, stride=2, mode='offline'),
    'offline, 3x3': lambda: OREPAConv2d(3, 8, 3, stride=2, padding=1, mode='offline'),
    'online': lambda: OREPAConv2d(3, 8, 1, stride=2),
    'tweaked': lambda: TweakedOREPAConv2d(3, 8, 1, stride=2),
    'with norms inside': lambda: RepVGGConv2d(3, 8, 3, stride=2, padding=1),
}}
torch.set_num_threads(2)
for name, make in MADE.items():
    torch.manual_seed(0)
    conv = make().train()
    x = torch.randn(3, 3, 128, 128).to(memory_format=torch.channels_last)
    found = []
    for dtype in (torch.float32, torch.float32, torch.float64):
        out = conv.to(dtype)(x.to(dtype))
        weighted = out * torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        found.append(torch.autograd.grad(weighted.sum(), list(conv.parameters())))
    *found, wanted = found
    size = max(b.abs().max() for b in wanted)
    for some in found:
        for a, b in zip(some, wanted):
            if not (a - b).abs().max() <= {GRADIENTS_AGREE} * size:
                sys.exit(f'{{name}}: {{a}} is not {{b}}')
"""


def test_blocks_on_two_threads():
    """In a process of its own, which a write past a workspace may end."""
    command = [sys.executable, '-c', STRIDED_1X1]
    result = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('channels', [4, 16])
@pytest.mark.parametrize('size', [1, 3])
@pytest.mark.parametrize('stride', [(1, 1), (2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize('padding', [(0, 0), (1, 0)])
def test_computes_what_torch_computes(channels, size, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(2, channels, 9, 8)
    weight, bias = torch.randn(6, channels, size, size), torch.randn(6)
    arguments = (x, weight, bias, stride, padding, (1, 1), 1)
    torch.testing.assert_close(conv2d(*arguments), F.conv2d(*arguments))


def test_padding_by_a_word():
    x, weight = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3)
    arguments = (x, weight, None, (1, 1), 'same', (1, 1), 1)
    torch.testing.assert_close(conv2d(*arguments), F.conv2d(*arguments))
