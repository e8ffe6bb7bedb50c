"""What the tests of operators share: both forms of them, and mmcv's own functions over either."""

import contextlib
import sys
from unittest import mock

import torch

import mmorepa.ops

mmorepa.ops.provide()

import mmcv.ops  # noqa: E402, F401

from mmorepa.ops import extension as OURS  # noqa: E402, F401

#: Sums in float32 in another order, relative to the largest value.
ROUNDING = 3e-6
#: One rounding to half precision, relative to the largest value.
HALF = {torch.float16: 2**-10, torch.bfloat16: 2**-7}


@contextlib.contextmanager
def using(extension):
    """Have all of ``mmcv.ops`` call the operators of a module, in the context."""
    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
                stack.enter_context(mock.patch.object(module, 'ext_module', extension))
        yield


def values_and_gradients(function, tensors, extension):
    """What a function of mmcv gives, and the gradients of those tensors that have floats.

    The output's gradient is random, the same each time.
    """
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    with using(extension):
        output = function(*leaves)
        if not output.requires_grad:
            return [output]
        above = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        output_gradient = above.to(output)
        gradients = torch.autograd.grad(output, wanted, output_gradient, allow_unused=True)
    return [output.detach(), *[g for g in gradients if g is not None]]


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, relative to the largest value wanted."""
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    if not wanted.numel():
        return 0.0
    scale = wanted.double().abs().max().clamp(min=1e-30)
    return ((found.double() - wanted.double()).abs().max() / scale).item()


def random_boxes(number: int, seed: int = 0, size: float = 100.0) -> torch.Tensor:
    """Boxes (x1, y1, x2, y2) with sides from nothing to half the picture."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 2, generator=generator) * size
    sides = torch.rand(number, 2, generator=generator) * size / 2
    return torch.cat([low, low + sides], 1)


def random_rois(number: int, images: int, size: float, seed: int = 0) -> torch.Tensor:
    """Regions of ``images`` pictures, some of which reach over their borders."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(images, (number, 1), generator=generator).float()
    return torch.cat([image, random_boxes(number, seed, size) - size / 8], 1)
