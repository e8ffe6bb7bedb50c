"""Stopping training when the loss is not finite, and saying where that began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..convs.finite import fault_of, first_fault, is_finite, layers
from ..errors import UserError
from .squeezed_step import saves_now, unwrap

_ADVICE = 'lower the learning rate or clip gradients, and go on from the last checkpoint'


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops training with one line as soon as the loss is infinite or NaN.

    The hook checks the loss before the backward pass, while the parameters are still those that
    gave the loss. If the loss is not finite, the network runs once more on the same batch and every
    layer is checked. The line then names the first of these that applies:

    - the first layer, in the order in which layers run, whose kernel is not finite. This may be a
      parameter, or the kernel that an OREPA block generates from finite parameters;
    - the input, with the files that it comes from;
    - the first module whose output is not finite;
    - otherwise, only the loss.

    No checkpoint of a network that is not finite is written, and the one that it would replace is
    kept. Non-finite gradients alone are not an error, because loss scaling produces them on purpose
    and skips that step.

    An ordinary step costs one ``isfinite`` of one number. In a distributed training every process
    checks its own loss. A model that FSDP has sharded cannot run in one process alone; for it the
    line names the parameters of this process.
    """

    # Before the checkpoint is written and the one that it replaces is removed.
    priority = 'LOW'

    def before_run(self, runner) -> None:
        """Keep the check out of what ``compile=True`` compiles."""
        if runner.cfg.get('compile'):  # to import torch's compiler takes most of a second
            self._check_loss = torch.compiler.disable(self._check_loss)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Check the loss of this iteration; copies of the model made between two have no hook."""
        check = partial(self._check_loss, runner)
        self._handle = unwrap(runner.model).register_forward_hook(check, with_kwargs=True)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Check the weights if a checkpoint is about to be written."""
        self._handle.remove()
        if any(saves_now(hook, self, runner) for hook in runner.hooks):
            self._check_weights(runner)

    def after_train_epoch(self, runner) -> None:
        """Check the weights."""
        self._check_weights(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Refuse to write a network that is not finite, whatever triggered the checkpoint."""
        self._check_weights(runner)

    def _check_loss(self, runner, model: nn.Module, args: tuple, kwargs: dict, losses: Any) -> None:
        if kwargs.get('mode') != 'loss' or not isinstance(losses, dict):
            return
        total = sum(_mean(loss) for name, loss in losses.items() if 'loss' in name)
        if not isinstance(total, Tensor) or is_finite(total):
            return
        self._handle.remove()
        where = f'in iteration {runner.iter + 1}'
        if get_world_size() > 1:
            where += f' of process {get_rank()}'
        names = [name for name, loss in losses.items() if 'loss' in name]
        names = [name for name in names if not is_finite(_mean(losses[name]))]
        _stop(
            runner,
            f'the loss is {total.item()} {where}: {_explain(runner.model, args, kwargs, names)}',
        )

    def _check_weights(self, runner) -> None:
        if fault := _first_fault(runner.model, statistics=True):
            _stop(
                runner,
                f'the network is not finite any more and is not saved, beginning with {fault}: '
                f'{_ADVICE}',
            )


@contextmanager
def refuse_non_finite_outputs(model: nn.Module) -> Iterator[None]:
    """A context in which a part of a model may give nothing that is infinite or NaN.

    The parts are the direct children that the model calls, such as its data preprocessor, backbone
    and neck. Finite weights do not suffice: a running variance may be negative, a normalisation may
    divide by zero.

    Args:
        model (nn.Module): A model of OpenMMLab, in eval mode.

    Raises:
        UserError: If a part does, with its name.
    """

    def check(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if not all(is_finite(tensor) for tensor in tensors_in(output)):
            where = 'mean and std' if name == 'data_preprocessor' else 'the running statistics'
            raise UserError(
                f'{name} gives values that are not finite: check the images, and {where} of its '
                'config and checkpoint'
            )

    handles = [
        child.register_forward_hook(partial(check, name)) for name, child in model.named_children()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _stop(runner, message: str) -> None:
    runner.logger.error(message)
    raise UserError(message)


def _first_fault(model: nn.Module, statistics: bool) -> str:
    """The first layer that is not finite; for a sharded model, the first parameter."""
    if not _is_sharded(model):
        return first_fault(unwrap(model), statistics)
    # A process has only pieces of the parameters and cannot generate kernels from them.
    faulty = (name for name, piece in model.named_parameters() if not is_finite(piece.detach()))
    return next(faulty, '').replace('_fsdp_wrapped_module.', '')


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def _mean(loss: Tensor | list[Tensor]) -> Tensor:
    """The mean of a loss, as MMEngine adds it to the total."""
    if isinstance(loss, Tensor):
        return loss.detach().mean()
    return sum(part.detach().mean() for part in loss)


def _explain(model: nn.Module, args: tuple, kwargs: dict, losses: list[str]) -> str:
    """Where the fault began, and what to do about it."""
    if _is_sharded(model):
        if fault := _first_fault(model, statistics=False):
            return f'first parameter that is not finite is {fault}; {_ADVICE}'
        return 'all parameters of this process are finite; check learning rate, input and targets'
    watch = Watch(unwrap(model))
    watch.run(args, kwargs)
    if watch.kernel:
        return f'first layer with a kernel that is not finite is {watch.kernel}; {_ADVICE}'
    if source := _faulty_input(args, kwargs):
        return f'all kernels are finite, the input is not ({source}); check the data'
    if watch.output:
        return (
            f'all kernels are finite, the first module with an output that is not is '
            f'{watch.output}; {_ADVICE}'
        )
    return (
        f'all kernels and outputs are finite, the loss alone is not '
        f'({", ".join(losses) or "the sum of all"}); '
        'check learning rate, input and targets'
    )


class Watch:
    """Runs a model once more and checks every layer when it runs.

    Attributes:
        kernel (str): The first layer that is not finite and which tensor of it; empty if all
            layers are finite.
        output (str): The first module whose output is not finite; empty if all outputs are finite.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.kernel = self.output = ''
        self._names = {module: name for name, module in layers(model) if module is not model}
        # In training mode statistics are not read, and the run that failed has spoilt them.
        self._reads_statistics = {module for module in self._names if not module.training}

    def run(self, args: tuple, kwargs: dict) -> None:
        """Run the model's forward on a preprocessed batch."""
        handles = []
        for module in self._names:
            handles.append(module.register_forward_pre_hook(self._look_at_layer))
            handles.append(module.register_forward_hook(self._look_at_output))
        # Their statistics would wait for the other processes, which do not run the model now.
        synced = [m for m in self.model.modules() if isinstance(m, nn.SyncBatchNorm) and m.training]
        if get_world_size() > 1:
            for norm in synced:
                norm.eval()
        try:
            with torch.no_grad():
                # Not the compiled forward, which calls no hooks.
                type(self.model).forward(self.model, *args, **kwargs)
        except Exception:  # with such numbers anything may fail; what was found until then counts
            pass
        finally:
            for handle in handles:
                handle.remove()
            for norm in synced:
                norm.train()
        # A layer may be used without being called.
        self.kernel = self.kernel or first_fault(self.model, statistics=False)

    def _look_at_layer(self, module: nn.Module, args: tuple) -> None:
        fault = '' if self.kernel else fault_of(module, module in self._reads_statistics)
        if fault:
            self.kernel = f'{self._names[module]} ({fault})'

    def _look_at_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        # A tensor without dimensions is a loss.
        tensors = [tensor for tensor in tensors_in(output) if tensor.dim()]
        if not self.output and not all(is_finite(tensor) for tensor in tensors):
            self.output = self._names[module]


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


def _faulty_input(args: tuple, kwargs: dict) -> str:
    """The images that are not finite, by file name if known; empty if all are finite."""
    images = kwargs.get('inputs', args[0] if args else None)
    samples = kwargs.get('data_samples') or []
    faulty = [
        getattr(samples[i], 'img_path', None) or f'image {i} of the batch'
        for i, image in enumerate(images if isinstance(images, (Tensor, list, tuple)) else [])
        if not all(is_finite(tensor) for tensor in tensors_in(image))
    ]
    return ', '.join(faulty[:3]) + (f' and {len(faulty) - 3} more' if faulty[3:] else '')
