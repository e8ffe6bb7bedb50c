"""Turning the training form into the deploy form, and checking that both are the same function.

A model has three forms. In the *training* form convolutions are OREPA or other blocks. ``squeeze``
turns each block into its equivalent plain convolution and keeps the BatchNorms. This is the
*plain* form, whose state dict is that of the plain network. ``switch_to_deploy`` folds the
BatchNorms as well. This is the *deploy* form.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..batch_norm import rest_of
from ..blocks.normed import AbsorbedNorm
from ..kernels import fold_batch_norm
from ..reparam import ReparamConv2d
from .hooks import has_hook_between, take_hooks_over
from .pairs import Pair, conv_norm_pairs

#: Largest relative difference in float32 that counts as equal.
TOLERANCE = 1e-4
#: The methods by which blocks of other packages become plain convolutions. mmpretrain's blocks have
#: both, of which ``reparameterize`` gives the kernel and changes nothing.
OTHERS = ('switch_to_deploy', 'reparameterize')


def squeeze(model: nn.Module, inplace: bool = True) -> nn.Module:
    """Turn every block in ``model`` into a plain convolution, and keep the BatchNorms.

    A block that has taken in the BatchNorm behind it gives one back, so that the function in eval
    mode is the same; see :meth:`mmorepa.convs.blocks.normed.NormedConv2d.split`. Calling this twice
    changes nothing.

    Args:
        model (nn.Module): Any module. It may be a block itself.
        inplace (bool): False leaves ``model`` unchanged and returns a changed copy.

    Returns:
        nn.Module: The squeezed model.
    """
    if not inplace:
        model = copy.deepcopy(model)
    for pair in list(conv_norm_pairs(model)):
        if isinstance(pair.norm, AbsorbedNorm):
            norm = take_hooks_over(pair.conv.split(pair.norm), pair.norm)
            pair.parent._modules[pair.norm_name] = norm
    for module in list(model.modules()):
        if isinstance(module, ReparamConv2d):
            module.switch_to_deploy()
    return model


def switch_to_deploy(model: nn.Module, inplace: bool = True) -> nn.Module:
    """Squeeze ``model`` and fold every BatchNorm that directly follows a convolution into it.

    A BatchNorm follows a convolution if it is the next child of the same module and, where torch.fx
    can trace the module that runs them, gets the convolution's output; see
    :func:`mmorepa.convs.convert.pairs.conv_norm_pairs`. Not looked at are what torch.fx cannot
    trace, a ``forward`` that was set on the object of that module, a path that only an argument
    other than a flag, or two flags at once, open, and a module further out that reads the
    convolution's weight or calls it by itself, as mmdet's TOOD does: check such a model with
    ``verify``.
    A BatchNorm stays if it or its convolution is shared between several places or has a ``forward``
    of its own, or if a forward hook may see what is between them. Folding is done in float64 and
    stored in the model's dtype. Calling this twice changes nothing.

    Blocks of other packages inside the model are converted by their own ``reparameterize()`` or
    ``switch_to_deploy()``, timm's also by their ``fuse()``, after the blocks of this package inside
    them.

    Args:
        model (nn.Module): Any module.
        inplace (bool): False leaves ``model`` unchanged and returns a changed copy.

    Returns:
        nn.Module: The model in deploy form.
    """
    if not inplace:
        model = copy.deepcopy(model)
    _convert_others(model)
    for pair in list(foldable_norms(model)):
        if not isinstance(pair.norm, AbsorbedNorm):
            _fold(pair.conv, pair.norm)
        rest = take_hooks_over(rest_of(pair.norm), pair.norm)
        pair.parent._modules[pair.norm_name] = rest
    return squeeze(model)


def _convert_others(parent: nn.Module) -> None:
    for name, child in list(parent.named_children()):
        conversion = _conversion_of(child)
        if conversion is None:
            _convert_others(child)
        else:
            squeeze(child)
            converted = conversion()
            # timm's fuse() returns what takes the block's place.
            if conversion.__name__ == 'fuse':
                parent._modules[name] = converted


def _conversion_of(module: nn.Module) -> Callable[[], nn.Module | None] | None:
    """A block's own conversion, if another package defines the block and it is not converted."""
    if getattr(module, 'deploy', False) is True:
        return None
    names = ('fuse', *OTHERS) if type(module).__module__.startswith('timm.') else OTHERS
    for name in names:
        method = getattr(module, name, None)
        if not inspect.ismethod(method) or method.__module__.partition('.')[0] == 'mmorepa':
            continue
        parameters = inspect.signature(method).parameters.values()
        if all(
            p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            for p in parameters
        ):
            return method
    return None


@dataclass(frozen=True)
class Agreement:
    """The differences between two models' outputs for the same input.

    Attributes:
        max_abs (float): The largest absolute difference of any output value.
        relative (float): ``max_abs`` over the largest magnitude of the first model's outputs.
        argmax (float): The share of positions at which the largest channel is the same, 0 to 1.
    """

    max_abs: float
    relative: float
    argmax: float

    @classmethod
    def of(cls, first: Sequence[Tensor], second: Sequence[Tensor]) -> Agreement:
        """The agreement of outputs that are at hand, over all of them.

        Args:
            first (Sequence[Tensor]): The outputs that count as right.
            second (Sequence[Tensor]): Others, in the same order.

        Raises:
            ValueError: If they differ in number or shape, or there are none.
        """
        shapes = [tuple(t.shape) for t in first], [tuple(t.shape) for t in second]
        if not first or shapes[0] != shapes[1]:
            raise ValueError(f'outputs of shapes {shapes[0]} and {shapes[1]} do not compare')
        first = [t.double().cpu() for t in first]
        second = [t.double().cpu() for t in second]
        # torch's max keeps a NaN, which Python's max may lose.
        gaps = torch.stack([(a - b).abs().max() for a, b in zip(first, second)])
        size = torch.stack([a.abs().max() for a in first]).max().item()
        max_abs = gaps.max().item()
        pairs = [(a, b) for a, b in zip(first, second) if a.dim() > 1]
        same = [(a.argmax(1) == b.argmax(1)).flatten() for a, b in pairs]
        return cls(
            max_abs=max_abs,
            relative=max_abs / size if size else max_abs,
            argmax=torch.cat(same).double().mean().item() if same else 1.0,
        )

    @classmethod
    def worst(cls, found: Sequence[Agreement]) -> Agreement:
        """The largest differences in ``found``, and the smallest share of equal argmax."""
        # Python's max may lose a NaN.
        largest = torch.tensor([[a.max_abs, a.relative] for a in found]).double().amax(0).tolist()
        return cls(*largest, argmax=min(agreement.argmax for agreement in found))

    def within(self, tolerance: float = TOLERANCE) -> bool:
        """Whether the relative difference is at most ``tolerance``; False for NaN."""
        return self.relative <= tolerance

    def __str__(self) -> str:
        return (
            f'largest difference {self.max_abs:.2e}, relative {self.relative:.2e}, '
            f'same argmax {self.argmax:.2%}'
        )


@torch.no_grad()
def verify(before: nn.Module, after: nn.Module, *args, **kwargs) -> Agreement:
    """Compare two forms of a model on one input, in eval mode.

    What a detector finds may change with the last digit, and it may find nothing. Where outputs
    are lists of dicts with ``boxes``, as of torchvision, or do not compare, the parts are compared
    instead: each part of the second model on the input that it has in the first. Afterwards each
    module of both models is in the mode, train or eval, in which it was before.

    Args:
        before (nn.Module): The training form.
        after (nn.Module): The plain or deploy form.
        args: The models' positional arguments.
        kwargs: The models' keyword arguments.

    Returns:
        Agreement: The differences over all tensors in the outputs, which may be nested in lists,
        tuples and dicts.

    Raises:
        ValueError: If the outputs differ in number or shape, or contain no tensor, and those of the
            parts as well.
    """
    first, second = (_evaluate(model, *args, **kwargs) for model in (before, after))
    try:
        if not _are_detections(first):
            return Agreement.of(_tensors(first), _tensors(second))
    except ValueError:
        if not any(True for _ in before.children()):
            raise
    found = []
    parts = called_parts(before, *args, **kwargs)
    for name, inputs, options in parts:
        outputs = _tensors(_evaluate(before.get_submodule(name), *inputs, **options))
        if outputs:
            others = _tensors(_evaluate(after.get_submodule(name), *inputs, **options))
            found.append(Agreement.of(outputs, others))
    if not found:
        raise ValueError(
            f'no part of {type(before).__name__} returns a tensor with values to compare: give an '
            'input of at least one image'
        )
    return Agreement.worst(found)


@torch.no_grad()
def called_parts(model: nn.Module, *args, **kwargs) -> list[tuple[str, tuple, dict]]:
    """The outermost modules that a model calls in eval mode, with the input of their first call.

    Args:
        model (nn.Module): The model.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        list[tuple[str, tuple, dict]]: Name, positional arguments and keyword arguments.
    """
    calls = {}

    def note(module, args, kwargs):
        calls.setdefault(module, (args, kwargs))

    hooks = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for module in model.modules()
        if module is not model
    ]
    try:
        _evaluate(model, *args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()

    def outermost(prefix, module):
        for name, child in module.named_children():
            if child in calls:
                yield f'{prefix}{name}', *calls[child]
            else:
                yield from outermost(f'{prefix}{name}.', child)

    return list(outermost('', model))


def _evaluate(model: nn.Module, *args, **kwargs):
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return model(*args, **kwargs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _are_detections(output) -> bool:
    return isinstance(output, list) and any(isinstance(o, dict) and 'boxes' in o for o in output)


def _tensors(output) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output] if output.numel() else []
    if isinstance(output, dict):
        output = output.values()
    if isinstance(output, str) or not hasattr(output, '__iter__'):
        return []
    return [tensor for item in output for tensor in _tensors(item)]


def foldable_norms(model: nn.Module) -> Iterator[Pair]:
    """The pairs whose BatchNorm can be folded into the convolution, or was taken in by it.

    A hook may read or change what is between the two; then they stay.
    """
    for pair in conv_norm_pairs(model):
        conv, norm = pair.conv, pair.norm
        if isinstance(norm, AbsorbedNorm) or (
            norm.running_mean is not None and not has_hook_between(conv, norm)
        ):
            yield pair


@torch.no_grad()
def _fold(conv: nn.Conv2d | ReparamConv2d, norm: _BatchNorm) -> None:
    if isinstance(conv, ReparamConv2d):
        conv.switch_to_deploy(norm)
        return
    kernel, bias = fold_batch_norm(conv.weight, conv.bias, norm)
    dtype, trainable = conv.weight.dtype, conv.weight.requires_grad
    conv.weight = nn.Parameter(kernel.to(dtype), trainable)
    conv.bias = nn.Parameter(bias.to(dtype), trainable)
