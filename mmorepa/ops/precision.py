"""How an operator runs: without a graph, unseen by autocast, in single precision or better."""

import functools

import torch


def operator(function):
    """Have a function run as a compiled operator does: autograd and autocast do not look into it.

    Its first argument must be a tensor.
    """

    @functools.wraps(function)
    def run(first, *args, **kwargs):
        with torch.no_grad(), torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return run


def full(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors, float16 and bfloat16 ones as float32; what is written to is rounded once."""
    half = (torch.float16, torch.bfloat16)
    return [tensor.float() if tensor.dtype in half else tensor for tensor in tensors]


def single(number: float) -> float:
    """A threshold in float32, as the compiled operators have it: 0.6 in float32 is above 0.6."""
    return torch.tensor(number, dtype=torch.float32).item()
