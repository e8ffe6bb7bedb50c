"""Where the training form and the deploy form of a network part, layer by layer.

Both forms run on the same images. At each convolution with the BatchNorm behind it, and its folded
counterpart, two differences are taken:

- alone: the folded convolution on the very input that the training form has there. It shows a layer
  whose conversion is at fault, or whose numbers leave float32 little room.
- so far: the outputs of both forms, each running by itself, which is what all layers up to there
  have added up to.

``switch_to_deploy`` pairs a BatchNorm with the convolution in front of it by the order in which a
module holds its children. Whether the network runs them in that order is seen here: ``follows``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...checkpoints.comparing import compare_forms
from ...convs import Agreement, switch_to_deploy
from ...convs.blocks.branch_kernels import named_blocks
from ...convs.convert.squeezing import foldable_norms


@dataclass(frozen=True)
class Difference:
    """How far two outputs of one layer are apart, the largest over all calls.

    Attributes:
        max_abs (float): Largest difference of any number; NaN where there is a NaN, or nothing
            to compare.
        relative (float): That over the largest magnitude in the training form.
    """

    max_abs: float
    relative: float


#: Where nothing was compared.
NOTHING = Difference(math.nan, math.nan)


@dataclass
class Layer:
    """A convolution, with the BatchNorm behind it if one is folded, and how far its forms part.

    Attributes:
        name (str): The convolution's name in the model.
        kind (str): Its class in the training form and its kernel's size.
        gain (float): The largest factor by which the BatchNorm scales a channel,
            ``|gamma| / sqrt(var + eps)``; NaN without a BatchNorm of its own.
        follows (bool): Whether the BatchNorm ran on the convolution's output, and right after it.
        calls (int): How often the layer ran.
        alone (Difference): See the module's text.
        so_far (Difference): See the module's text.
    """

    name: str
    kind: str
    gain: float = math.nan
    follows: bool = True
    calls: int = 0
    alone: Difference = NOTHING
    so_far: Difference = NOTHING


def difference(first: Tensor, second: Tensor) -> Difference:
    """How far ``second`` is from ``first``, which has the same shape."""
    if first.shape != second.shape or not first.numel():
        return NOTHING
    max_abs = (first.double() - second.double()).abs().max().item()
    size = first.double().abs().max().item()
    return Difference(max_abs, max_abs / size if size else max_abs)


def worse(first: Difference, second: Difference) -> Difference:
    """The larger of two differences of a layer, number by number, as far as there are any."""
    if first is NOTHING or second is NOTHING:
        return second if first is NOTHING else first
    pairs = zip((first.max_abs, first.relative), (second.max_abs, second.relative))
    # torch's max passes NaN on, where Python's may lose it.
    return Difference(*[torch.tensor(pair).double().max().item() for pair in pairs])


@torch.no_grad()
def compare_layers(model: nn.Module, images: Tensor) -> tuple[list[Layer], Agreement]:
    """Run both forms of a model and compare them at every layer that changes.

    Args:
        model (nn.Module): Classifier, detector or segmentor, in training or plain form. Left as
            it was.
        images (Tensor): (N, 3, H, W), normalised.

    Returns:
        tuple[list[Layer], Agreement]: The layers in the order in which they ran first, those that
        did not run behind; and the raw outputs of both forms, as ``convert.py`` compares them.
    """
    after = switch_to_deploy(model, inplace=False)
    watches = list(_watches(model, after))
    handles = [handle for watch in watches for handle in watch.attach()]
    try:
        agreement = compare_forms(model, after, images)
    finally:
        for handle in handles:
            handle.remove()
    for watch in watches:
        watch.finish()
    watches.sort(key=lambda watch: watch.first_call)
    return [watch.layer for watch in watches], agreement


def _watches(model: nn.Module, after: nn.Module) -> Iterator[_Watch]:
    """One for each pair that is folded, and one for each block that stands alone."""
    names = {id(module): name for name, module in model.named_modules()}
    clock = [0]
    paired = set()
    for pair in foldable_norms(model):
        name = names[id(pair.conv)]
        paired.add(name)
        yield _Watch(name, pair.conv, pair.norm, after.get_submodule(name), clock)
    for name, block in named_blocks(model):
        if name not in paired:
            yield _Watch(name, block, None, after.get_submodule(name), clock)


@dataclass
class _Watch:
    """Listens to a layer in both forms."""

    name: str
    conv: nn.Module
    norm: nn.Module | None
    folded: nn.Conv2d
    clock: list[int]
    first_call: float = math.inf
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)
    _input: Tensor | None = None
    _output: Tensor | None = None

    def __post_init__(self):
        kind = f'{type(self.conv).__name__} {"x".join(map(str, self.conv.kernel_size))}'
        self.layer = Layer(self.name, kind, gain_of(self.norm))

    def attach(self) -> list:
        handles = [
            self.conv.register_forward_hook(self._conv_ran),
            self.folded.register_forward_hook(self._folded_ran),
        ]
        if self.norm is not None:
            handles.append(self.norm.register_forward_hook(self._norm_ran))
        return handles

    def _conv_ran(self, module, args, output) -> None:
        if not self.layer.calls:
            self.clock[0] += 1
            self.first_call = self.clock[0]
        self.layer.calls += 1
        self._input, self._output = args[0], output
        if self.norm is None:
            self._compare(output)

    def _norm_ran(self, module, args, output) -> None:
        if self._output is None or args[0] is not self._output:
            self.layer.follows = False
        if self._input is not None:
            self._compare(output)

    def _compare(self, output: Tensor) -> None:
        # Past the module's call, which would be taken for one of the deploy form's.
        folded = self.folded.forward(self._input)
        self.layer.alone = worse(self.layer.alone, difference(output, folded))
        # Activations behind it may write into it.
        self.before.append(output.clone())
        self._input = self._output = None

    def _folded_ran(self, module, args, output) -> None:
        self.after.append(output.clone())

    def finish(self) -> None:
        # A two-stage detector's training form has run once more, before its parts were compared.
        for first, second in zip(reversed(self.before), reversed(self.after)):
            self.layer.so_far = worse(self.layer.so_far, difference(first, second))
        self.before.clear()
        self.after.clear()


def gain_of(norm: nn.Module | None) -> float:
    """The largest factor by which a BatchNorm scales a channel; NaN for what is none."""
    if not isinstance(norm, _BatchNorm):
        return math.nan
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double().abs()
    return gain.max().item()
