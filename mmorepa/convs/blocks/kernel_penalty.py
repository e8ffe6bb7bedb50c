"""Weight decay on the kernel that is deployed: the L2 penalty of a block's equivalent kernel.

Plain weight decay acts on the parameters of each branch, whatever their sum is. RepVGG's "custom
L2" (Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, released code) acts on
the equivalent kernel instead. It is said there to help accuracy and quantization.
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
    """Whether ``module`` has an equivalent kernel that is not a parameter itself."""
    return isinstance(module, (GeneratedConv2d, NormedConv2d))


def kernel_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the kernel of a block or branch is computed from.

    These are all parameters, including the scales, except those of BatchNorms, the bias, and the
    leaf of squeezed mode, which is the kernel itself.
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

    Without BatchNorms inside, the penalty is the sum of squares of the kernel ``W``. Weight decay
    of the plain convolution would be the same.

    With BatchNorms inside, branch b is equivalent to the kernel ``t_b B_b``. Here ``t_b`` is the
    factor by which the BatchNorm at its end, with its running variance, multiplies each output
    channel. At each tap the penalty is ::

        (sum of t_b B_b)^2 / (sum of t_b^2)

    where both sums run over the branches whose kernels reach that tap. The penalties of all taps
    and channels are added up. All BatchNorms count as constants. Branches without weights, such as
    the identity, do not count. The denominator makes the penalty comparable to plain weight decay:
    with a single branch it is ``B^2``, and for RepVGG's 3x3 and 1x1 branches it is the released
    custom L2. With one BatchNorm behind the block the same formula gives ``W^2``.

    Args:
        block (ReparamConv2d): A block for which :func:`decays_as_a_kernel` is True.

    Returns:
        Tensor: A scalar with a graph back to :func:`kernel_parameters`, or in squeezed mode to the
        leaves of the kernels. The term of the loss is half of it times the weight decay.
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
    # If all gains are zero, the kernels are zero too.
    return (total.square() / reach.clamp_min(torch.finfo(reach.dtype).tiny)).sum()


@torch.no_grad()
def _gain(norm: _BatchNorm) -> Tensor:
    """The factor by which a BatchNorm multiplies each channel in eval mode, (O,)."""
    return norm.weight * (norm.running_var + norm.eps).rsqrt()


def _taps(branch: NormedBranch) -> Tensor:
    """Ones at the taps that the kernel of a branch reaches, zeros at the others: (O, 1, k, k)."""
    full = (branch.kernel_size, branch.kernel_size)
    size = branch.size if isinstance(branch, ConvBranch) else full
    ones = branch.norm.weight.new_ones(branch.out_channels, 1, *size)
    return kernels.centre(ones, branch.kernel_size)


def _without_last_norm(branch: NormedBranch) -> NormedBranch:
    """A copy of a branch without its last BatchNorm, in which inner BatchNorms are constants.

    The copy shares the branch's parameters.
    """
    bare = copy.copy(branch)
    bare._modules = dict(branch._modules, norm=nn.Identity())
    if 'inner_norm' in bare._modules:
        inner = copy.copy(branch.inner_norm)
        inner._parameters = {name: own.detach() for name, own in inner._parameters.items()}
        bare._modules['inner_norm'] = inner
    return bare
