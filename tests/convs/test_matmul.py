"""Products in half precision: what is lost, and where nothing may be."""

import pytest
import torch

from mmorepa import OREPAConv2d, switch_to_deploy
from mmorepa.convs.matmul import matmul
from mmorepa.errors import UserError

ROUNDED = 2.0**-7  # relative, of a product of bfloat16 numbers
KERNEL = 1e-3  # relative to the kernel's largest number
GRADIENT = 1e-2

SHAPES = {
    'pointwise, first square': dict(in_channels=32, out_channels=64, kernel_size=1),
    'pointwise, second square': dict(in_channels=64, out_channels=32, kernel_size=1),
    'pointwise, groups': dict(in_channels=32, out_channels=64, kernel_size=1, groups=4),
    'kxk': dict(in_channels=48, out_channels=64, kernel_size=3),
    'kxk, groups': dict(in_channels=32, out_channels=48, kernel_size=3, groups=4),
    'kxk, wide inside': dict(in_channels=32, out_channels=48, kernel_size=3, groups=8),
    'stem': dict(in_channels=3, out_channels=32, kernel_size=7),
}


def pair(shape) -> tuple[OREPAConv2d, OREPAConv2d]:
    """The same block, with rounded products and with exact ones; what was trained has moved."""
    torch.manual_seed(0)
    rounded = OREPAConv2d(**SHAPES[shape], matmul_dtype='bfloat16')
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if name.endswith(('residual', 'first', 'second')):
                parameter.add_(
                    torch.randn_like(parameter), alpha=0.3 * parameter[0].numel() ** -0.5
                )
            if name.endswith('scale'):
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    exact = OREPAConv2d(**SHAPES[shape])
    exact.load_state_dict(rounded.state_dict())
    return rounded, exact


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize('shape', SHAPES)
def test_kernels_and_gradients(shape):
    rounded, exact = pair(shape)
    assert 0 < relative(rounded.squeeze(), exact.squeeze()) < KERNEL
    gradient = torch.randn(exact.squeeze().shape)
    for block in rounded, exact:
        block.squeeze().backward(gradient)
    for (name, a), b in zip(rounded.kernel.named_parameters(), exact.kernel.parameters()):
        assert relative(a.grad, b.grad) < GRADIENT, name


@pytest.mark.parametrize('shape', SHAPES)
def test_exact_in_evaluation_and_in_double_precision(shape):
    rounded, exact = pair(shape)
    assert torch.equal(rounded.eval().squeeze(), exact.eval().squeeze())
    rounded.train().double(), exact.train().double()
    assert torch.equal(rounded.squeeze(), exact.squeeze())


@pytest.mark.parametrize('shape', SHAPES)
def test_conversion_is_exact(shape):
    rounded, exact = pair(shape)
    deployed = [switch_to_deploy(block.train()) for block in (rounded, exact)]
    assert torch.equal(deployed[0].weight, deployed[1].weight)


@pytest.mark.parametrize(
    'rows, columns, near',
    [(12, 12, 'a'), (12, 12, 'b'), (24, 12, 'b'), (12, 24, 'b'), (12, 24, None)],
)
@pytest.mark.parametrize('groups', [1, 3])
def test_identities_are_not_rounded(rows, columns, near, groups):
    torch.manual_seed(0)
    small = 1e-3
    square = min(rows, columns)
    near_one = torch.eye(square).repeat(rows // square, columns // square)
    near_one = near_one + small * torch.randn(groups, rows, columns)
    if near == 'a':
        a, b = near_one, torch.randn(groups, columns, 5)
    else:
        a, b = torch.randn(groups, 5, rows), near_one
    error = relative(matmul(a, b, torch.bfloat16, near), a @ b)
    assert error < ROUNDED * (1 if near is None else 10 * small)
    assert relative(matmul(a, b), a @ b) < 1e-6


def test_of_what_is_not_a_dtype():
    with pytest.raises(UserError, match="matmul_dtype='float16' is not known: choose bfloat16"):
        OREPAConv2d(4, 4, 3, matmul_dtype='float16')
