"""What is timed: a training step, an evaluation step, and generating kernels alone."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...convs import SqueezedTraining
from ...engine.squeezed_step import squeezed_blocks
from .generation import generators
from .plan import Setup
from .subjects import loss_of
from .timing import Clock, Part

#: Small, so that nothing grows out of bounds on random images.
LEARNING_RATE = 1e-4

#: The part of a step that is the optimizer's own.
OPTIMIZER = 'optimizer'


def images(batch: int, size: int, setup: Setup) -> Tensor:
    """Random images, (N, 3, H, W), always the same ones."""
    made = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
    return placed(made, setup)


def placed(thing, setup: Setup):
    """A tensor or network on the device and in the memory format of ``setup``."""
    memory_format = torch.channels_last if setup.channels_last else torch.preserve_format
    if isinstance(thing, nn.Module) and not setup.channels_last:
        return thing.to(setup.device)
    return thing.to(setup.device, memory_format=memory_format)


class Step:
    """What all steps share: the network where it belongs, and how it is called.

    Args:
        network (nn.Module): Is moved to the device of ``setup``.
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, setup: Setup):
        self.clock = Clock(setup.device)
        self.setup = setup
        self.network = placed(network, setup)
        self.run = torch.compile(self.network) if setup.compile else self.network

    def autocast(self):
        """The context of the computing."""
        if not self.setup.amp:
            return contextlib.nullcontext()
        dtype = torch.float16 if self.clock.is_cuda else torch.bfloat16
        return torch.autocast(self.clock.device.type, dtype)


class TrainStep(Step):
    """A training step on images that are there already: micro-batches, then one update.

    The optimizer is SGD with momentum 0.9 and weight decay. Called, it gives seconds by name:

    - ``step``, all of what follows;
    - ``forward``: the network and the loss, making kernels left out;
    - ``backward``: likewise, less taking their gradients back to the branches;
    - ``optimizer``: its step, and dropping the gradients;
    - ``generate`` and ``pull_back``, where kernels are generated: making all kernels of the
      network, and taking gradients of them to the branches.

    In squeezed training the last two are parts of the update. Online they are within forward and
    backward pass: they are run by themselves after the step, with random gradients, and
    subtracted. Bringing a kernel into the memory format of the images counts as forward then.
    They are left out under ``torch.compile``, where there are no such parts, and between
    processes, where DDP would take them for part of a step.

    Args:
        network (nn.Module): In training mode.
        x (Tensor): A micro-batch, (N, 3, H, W).
        setup (Setup): See there.
        accumulate (int): How many micro-batches a step has. Defaults to 1.
        shared_out (bool): Whether the processes share out the update of squeezed training.
            Defaults to False.
        ddp (bool): Whether to train with DDP, ``torch.distributed`` being up. Defaults to False.
    """

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        setup: Setup,
        accumulate: int = 1,
        shared_out: bool = False,
        ddp: bool = False,
    ):
        super().__init__(network, setup)
        self.x = x
        self.labels = torch.arange(len(x), device=x.device) * 7
        self.accumulate = accumulate
        choice = {} if setup.optimizer == 'default' else {setup.optimizer: True}
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, **choice
        )
        self.scaler = torch.amp.GradScaler(
            self.clock.device.type, enabled=setup.amp and self.clock.is_cuda
        )
        self.loss: Tensor | None = None
        if ddp:
            self.run = DistributedDataParallel(self.run)
        self.training, self.generation = None, None
        if squeezed_blocks(self.network):
            self.training = SqueezedTraining(self.network, self.optimizer, shard=shared_out)
        elif not ddp and not setup.compile and generators(self.network):
            self.generation = Generation(self.network, setup)

    @property
    def parts(self) -> list[Part]:
        """What a step consists of, in order."""
        parts: list[Part] = []
        for i in range(self.accumulate):
            last = i == self.accumulate - 1
            parts.append(('forward', partial(self.forward, last)))
            parts.append(('backward', partial(self.backward, last)))
        return parts + self.update

    @property
    def update(self) -> list[Part]:
        """The parts that come once a step."""
        if self.training is None:
            return [(OPTIMIZER, self.optimize)]
        return [
            ('pull_back', self.training.pull_back),
            (OPTIMIZER, self.optimize),
            ('generate', self.training.generate),
        ]

    def __call__(self) -> dict[str, float]:
        """Run it; see above."""
        try:
            sample = self.clock.timed(self.parts, self.setup.steps)
            if self.generation:
                alone = self.generation()
                for of, within in dict(generate='forward', pull_back='backward').items():
                    sample[of] = self.accumulate * alone[of]
                    sample[within] -= sample[of]
            return sample
        except Exception:
            # Out of memory, it should not keep what the others need.
            self.loss = None
            self.zero_grad()
            raise

    def forward(self, last: bool = True) -> None:
        """The network and the loss; ``last`` of the micro-batches."""
        with self._syncing(last), self.autocast():
            self.loss = loss_of(self.run(self.x), self.labels) / self.accumulate

    def backward(self, last: bool = True) -> None:
        """The gradients of all parameters."""
        with self._syncing(last):
            self.scaler.scale(self.loss).backward()
        self.loss = None

    def _syncing(self, last: bool):
        """DDP reduces gradients in the last micro-batch alone."""
        ddp = isinstance(self.run, DistributedDataParallel)
        return self.run.no_sync() if ddp and not last else contextlib.nullcontext()

    def optimize(self) -> None:
        """The optimizer's step; gradients are dropped."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        (self.training or self.optimizer).zero_grad()


class EvalStep(Step):
    """A batch through the network in eval mode, without gradients.

    Args:
        network (nn.Module): Is put in eval mode, once.
        x (Tensor): (N, 3, H, W).
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, x: Tensor, setup: Setup):
        super().__init__(network.eval(), setup)
        self.x = x

    def __call__(self) -> dict[str, float]:
        """Seconds of ``step``."""
        with torch.no_grad(), self.autocast():
            return self.clock.timed([('step', self.forward)], self.setup.steps)

    def forward(self) -> None:
        """The network."""
        self.run(self.x)


class Generation(Step):
    """Generating kernels with a graph, and taking random gradients of them back.

    Called, it gives seconds of ``generate`` and ``pull_back``, and of both as ``step``.

    Args:
        network (nn.Module): A block that generates its kernel, or a network with such blocks.
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, setup: Setup):
        super().__init__(network, setup)
        self.generators = generators(self.network)
        self.gradients: Sequence[Tensor] = ()
        self.kernels: Sequence[Tensor] = ()

    def __call__(self) -> dict[str, float]:
        """Run it; see above."""
        try:
            parts = [('generate', self.generate), ('pull_back', self.pull_back)]
            return self.clock.timed(parts, self.setup.steps)
        finally:
            self.kernels = ()
            self.network.zero_grad()

    def generate(self) -> None:
        """All kernels."""
        with self.autocast():
            self.kernels = [make() for make in self.generators]

    def pull_back(self) -> None:
        """From random gradients of the kernels to those of the parameters."""
        if not self.gradients:
            self.gradients = [torch.randn_like(kernel) for kernel in self.kernels]
        self.network.zero_grad()
        torch.autograd.backward(self.kernels, self.gradients)
        self.kernels = ()
