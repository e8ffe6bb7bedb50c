"""What is timed: a training step, an evaluation step, and generating kernels alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .generation import generators
from .plan import Setup
from .subjects import loss_of
from .timing import Clock

#: Small, so that nothing grows out of bounds on random images.
LEARNING_RATE = 1e-4


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
        x (Tensor): The images, from :func:`images`.
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, x: Tensor, setup: Setup):
        self.clock = Clock(setup.device)
        self.setup = setup
        self.x = x
        self.network = placed(network, setup)
        self.run = torch.compile(self.network) if setup.compile else self.network

    def autocast(self):
        """The context of the computing."""
        if not self.setup.amp:
            return contextlib.nullcontext()
        dtype = torch.float16 if self.clock.is_cuda else torch.bfloat16
        return torch.autocast(self.clock.device.type, dtype)

    def timed(self, *parts: Callable[[], None]) -> tuple[float, list[float]]:
        """Run parts of work one after the other, as often as the setup has it.

        Returns:
            tuple[float, list[float]]: Seconds of all, from the moment when the device has nothing
            to do to the moment when it has nothing to do again; and of each part. Each divided by
            the number of steps.
        """
        clock, steps = self.clock, self.setup.steps
        began = clock.now()
        marks = [clock.mark()]
        for _ in range(steps):
            for part in parts:
                part()
                marks.append(clock.mark())
        whole = clock.now() - began
        seconds = [clock.between(a, b) / steps for a, b in zip(marks, marks[1:])]
        return whole / steps, [sum(seconds[i :: len(parts)]) for i in range(len(parts))]


class TrainStep(Step):
    """A training step on one batch that is there already, and the kernels of the step alone.

    The optimizer is SGD with momentum 0.9 and weight decay. Called, it gives seconds by name:

    - ``step``, all of what follows;
    - ``forward``: the network and the loss, kernels included;
    - ``backward``: likewise;
    - ``optimizer``: the update, and dropping the gradients;
    - ``generation_forward`` and ``generation_backward``, where kernels are generated: making all
      kernels of the network, and taking random gradients of their shapes back to the parameters.
      Run by itself after the step, and not part of it. Bringing a kernel into the memory format
      of the images is not in it, but in ``forward``. Left out under ``torch.compile``, where
      there is no such part.

    Args:
        network (nn.Module): In training mode.
        x (Tensor): (N, 3, H, W).
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, x: Tensor, setup: Setup):
        super().__init__(network, x, setup)
        self.labels = torch.arange(len(x), device=x.device) * 7
        trained = [p for p in self.network.parameters() if p.requires_grad]
        choice = {} if setup.optimizer == 'default' else {setup.optimizer: True}
        self.optimizer = torch.optim.SGD(
            trained, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4, **choice
        )
        self.scaler = torch.amp.GradScaler(
            self.clock.device.type, enabled=setup.amp and self.clock.is_cuda
        )
        self.generators = [] if setup.compile else generators(self.network)
        self.gradients: Sequence[Tensor] = ()
        self.loss: Tensor | None = None
        self.kernels: Sequence[Tensor] = ()

    def __call__(self) -> dict[str, float]:
        """Run it; see above."""
        try:
            step, (forward, backward, optimizer) = self.timed(
                self.forward, self.backward, self.update
            )
            sample = dict(step=step, forward=forward, backward=backward, optimizer=optimizer)
            if self.generators:
                _, parts = self.timed(self.generate, self.pull_back, self.drop_gradients)
                sample.update(generation_forward=parts[0], generation_backward=parts[1])
            return sample
        except Exception:
            # Out of memory, it should not keep what the others need.
            self.loss, self.kernels, self.gradients = None, (), ()
            self.drop_gradients()
            raise

    def forward(self) -> None:
        """The network and the loss."""
        with self.autocast():
            self.loss = loss_of(self.run(self.x), self.labels)

    def backward(self) -> None:
        """The gradients of all parameters."""
        self.scaler.scale(self.loss).backward()
        self.loss = None

    def update(self) -> None:
        """The optimizer's step; gradients are dropped."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.drop_gradients()

    def drop_gradients(self) -> None:
        """Forget the gradients of all parameters."""
        self.optimizer.zero_grad(set_to_none=True)

    def generate(self) -> None:
        """All kernels."""
        with self.autocast():
            self.kernels = [make() for make in self.generators]

    def pull_back(self) -> None:
        """From random gradients of the kernels to those of the parameters."""
        if not self.gradients:
            self.gradients = [torch.randn_like(kernel) for kernel in self.kernels]
        torch.autograd.backward(self.kernels, self.gradients)
        self.kernels = ()


class EvalStep(Step):
    """A batch through the network in eval mode, without gradients.

    Args:
        network (nn.Module): Is put in eval mode, once.
        x (Tensor): (N, 3, H, W).
        setup (Setup): See there.
    """

    def __init__(self, network: nn.Module, x: Tensor, setup: Setup):
        super().__init__(network.eval(), x, setup)

    def __call__(self) -> dict[str, float]:
        """Seconds of ``step``."""
        with torch.no_grad(), self.autocast():
            step, _ = self.timed(self.forward)
        return dict(step=step)

    def forward(self) -> None:
        """The network."""
        self.run(self.x)


class Generation(TrainStep):
    """Generating the kernel of one block, and taking a random gradient of it back.

    Args:
        block (nn.Module): One that generates a kernel.
        setup (Setup): See there.
    """

    def __init__(self, block: nn.Module, setup: Setup):
        super().__init__(block, torch.empty(0, device=setup.device), setup)

    def __call__(self) -> dict[str, float]:
        """Seconds of ``forward`` and ``backward``, and of both as ``step``."""
        whole, (forward, backward) = self.timed(self.generate, self.pull_back_and_drop)
        return dict(step=whole, forward=forward, backward=backward)

    def pull_back_and_drop(self) -> None:
        """From the gradient of the kernel to those of the parameters, which are dropped."""
        self.pull_back()
        self.drop_gradients()
