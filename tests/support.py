"""What the tests share that is no fixture."""

import multiprocessing
import resource
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmorepa.convs import ReparamConv2d
from mmorepa.environment import distribution
from mmorepa.errors import UserError

ROOT = Path(__file__).parents[1]
#: Tests in which mim looks for what this package holds.
FINDS_PACKAGES = pytest.mark.skipif(
    distribution('mim') == 'onedl-mim',
    reason="onedl-mim 0.5.1 takes a package's metadata folder for the package",
)
CONFIG = ROOT / 'configs' / 'digits' / 'orepa-resnet18_1xb64-10e_digits.py'


def run(folder: Path, *command, code: int = 0) -> str:
    """Run a command in a folder and check its exit code.

    Returns:
        str: What it printed, standard error behind standard output.
    """
    command = [str(part) for part in command]
    result = subprocess.run(command, cwd=folder, text=True, capture_output=True)
    output = result.stdout + result.stderr
    assert result.returncode == code, output
    return output


def in_fork(action: Callable[[], object]) -> object:
    """What ``action`` returns in a process forked from this one, which stays as it is.

    Returns:
        object: None if the process ended before that, with an exception or a crash.
    """
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)

    def answer():
        torch.set_num_threads(1)  # threads do not survive a fork
        sender.send(action())

    process = context.Process(target=answer)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.kill()  # it has nothing more to do, or never will
        process.join()


def on_a_full_disk(action: Callable[[], object], space: int = 4096) -> str:
    """Do something in a forked process that can write no file of more than ``space`` bytes.

    Returns:
        str: What its UserError says. It is empty if there was none; the process may have crashed.
    """

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (space, space))
        try:
            action()
        except UserError as error:
            return str(error)

    return in_fork(limited) or ''


def end_trace(x: Tensor) -> None:
    """Let torch.fx give up on a forward, so that the order of the children decides what pairs."""
    bool(x.isnan().any())


def make_trained_like(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move a fresh model away from its defaults, where comparing forms would say little.

    BatchNorm statistics and affine parameters, scales, residuals and biases become random;
    kernels keep their random initial values.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.data.uniform_(low, high, generator=generator)

    for module in model.modules():
        if isinstance(module, _BatchNorm):
            uniform(module.running_mean, -0.5, 0.5)
            uniform(module.running_var, 0.5, 2.0)
            uniform(module.weight, 0.5, 1.5)
            uniform(module.bias, -0.5, 0.5)
        elif isinstance(module, ReparamConv2d):
            for name, parameter in module.named_parameters():
                kind = name.rpartition('.')[2]
                if kind == 'scale':
                    uniform(parameter, -1.0, 1.0)
                elif kind == 'residual' or name == 'bias':
                    uniform(parameter, -0.2, 0.2)
    return model


def kernel_and_gradients(conv, gradient: torch.Tensor):
    """The kernel of a block, and the gradients of its parameters where the kernel's is given."""
    parameters = list(conv.kernel.parameters())
    kernel = conv.squeeze()
    return kernel.detach(), torch.autograd.grad(kernel, parameters, gradient)


def by_the_formula() -> AbstractContextManager:
    """Let blocks sum up their branches' kernels as the paper states it, in the context."""
    return mock.patch('mmorepa.convs.orepa.fast.is_fast', lambda block: False)
