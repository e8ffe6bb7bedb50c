"""Whether an optimizer trains all that is to be trained."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from ..errors import UserError
from .generated import GeneratedConv2d

#: As many parameters are named in the message.
SHOWN = 3


def check_optimizer(model: nn.Module, optimizer: Optimizer) -> None:
    """Check that an optimizer holds every parameter of a model that is to be trained.

    A script that collects parameters by hand, such as the ``weight`` and ``bias`` of modules it
    knows, misses the scales and other parameters of blocks, and these are then never trained. In
    squeezed mode the parameters of a block are to be trained if its ``weight`` requires grad.

    Args:
        model (nn.Module): The model, or the wrapper around it.
        optimizer (Optimizer): Any optimizer of torch.

    Raises:
        UserError: If it lacks parameters. The message names the first ones.

    Example:
        >>> model = nn.Sequential(OREPAConv2d(8, 8, 3))
        >>> check_optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """
    held = {id(p) for group in optimizer.param_groups for p in group['params']}
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, block in model.named_modules():
        if isinstance(block, GeneratedConv2d) and block.mode == 'squeezed':
            # The leaf stands for the branches, which do not require grad.
            if wanted.pop(f'{name}.weight' if name else 'weight', None) is not None:
                prefix = f'{name}.kernel.' if name else 'kernel.'
                wanted.update((prefix + n, p) for n, p in block.kernel.named_parameters())
    missed = [name for name, parameter in wanted.items() if id(parameter) not in held]
    if missed:
        more = f' and {len(missed) - SHOWN} more' if len(missed) > SHOWN else ''
        raise UserError(
            f'the optimizer does not hold {", ".join(missed[:SHOWN])}{more}, so they are never '
            'trained: build it over model.parameters(), or freeze them'
        )
