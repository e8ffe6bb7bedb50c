"""Weight decay on what is deployed: L2 of the kernel that a block amounts to.

Plain weight decay pulls on the parameters of each branch, whatever their sum is like. RepVGG's
"custom L2" (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, released
code) pulls on the equivalent kernel instead; it is said there to help accuracy and quantization.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import kernels
from ..generated import GeneratedConv2d
from ..reparam import ReparamConv2d
from .normed import ConvBranch, NormedBranch, NormedConv2d


def decays_as_a_kernel(module: nn.Module) -> bool:
    """Whether it has an equivalent kernel that is not a parameter itself."""
    return isinstance(module, (GeneratedConv2d, NormedConv2d))


def kernel_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the kernel of a block, or of a branch, is made of.

    All, the scales included, but those of BatchNorms and the bias; nor the leaf of squeezed mode,
    which is the kernel itself.
    """
    return [
        parameter
        for part in module.modules()
        if not isinstance(part, _BatchNorm)
        for name, parameter in part._parameters.items()
        if parameter is not None and name != 'bias'
        if not (name == 'weight' and isinstance(part, GeneratedConv2d))
    ]


def kernel_penalty(block: ReparamConv2d) -> Tensor:
    """The L2 penalty on the equivalent kernel of a block.

    Without BatchNorms inside this is the sum of squares of the kernel ``W``, just what weight decay
    is to the plain convolution in its place.

    With BatchNorms inside, branch b amounts to ``t_b B_b``, where ``t_b`` is what the BatchNorm at
    its end multiplies each output channel with, by its running variance. At each tap it is ::

        (sum of t_b B_b)^2 / (sum of t_b^2)

    over the branches whose kernels reach that tap. All BatchNorms count as constants, and a branch
    without weights, such as the identity, does not count. The denominator makes it comparable to
    plain weight decay: with a single branch it is ``B^2``, and for RepVGG's 3x3 and 1x1 it is the
    released custom L2. With one BatchNorm behind the block the same formula gives ``W^2``.

    Args:
        block (ReparamConv2d): One of :func:`decays_as_a_kernel`.

    Returns:
        Tensor: A scalar with a graph back to :func:`kernel_parameters`, in squeezed mode to the
        kernels' leaves. Half of it times the weight decay is the term of the loss.
    """
    if not block.takes_norm:
        kernel = block.weight if isinstance(block, GeneratedConv2d) else block.merged()[0]
        return kernel.square().sum()
    total = reach = 0
    for branch in block.children():
        if kernel_parameters(branch):
            square = _gain(branch.norm).square()
            reach = reach + kernels.scale(_taps(branch), square)
            kernel, _ = _without_last_norm(branch).merged()
            total = total + kernels.scale(kernel.to(square.dtype), _gain(branch.norm))
    # Where all gains are zero, so are the kernels.
    return (total.square() / reach.clamp_min(torch.finfo(reach.dtype).tiny)).sum()


@torch.no_grad()
def _gain(norm: _BatchNorm) -> Tensor:
    """What a BatchNorm multiplies each channel with in eval mode, (O,)."""
    return norm.weight * (norm.running_var + norm.eps).rsqrt()


def _taps(branch: NormedBranch) -> Tensor:
    """One for each tap that the kernel of a branch reaches, zero for the others: (O, 1, k, k)."""
    full = (branch.kernel_size, branch.kernel_size)
    size = branch.size if isinstance(branch, ConvBranch) else full
    ones = branch.norm.weight.new_ones(branch.out_channels, 1, *size)
    return kernels.centre(ones, branch.kernel_size)


def _without_last_norm(branch: NormedBranch) -> NormedBranch:
    """The branch as it is before its last BatchNorm, with those further inside as constants.

    It shares the branch's parameters.
    """
    bare = copy.copy(branch)
    bare._modules = dict(branch._modules, norm=nn.Identity())
    if 'inner_norm' in bare._modules:
        inner = copy.copy(branch.inner_norm)
        inner._parameters = {name: own.detach() for name, own in inner._parameters.items()}
        bare._modules['inner_norm'] = inner
    return bare
