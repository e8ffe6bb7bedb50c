"""The files that a model can be exported to."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from . import torch_program, torchscript
from .format_options import FormatOptions
from .onnx_file import INPUT, needed, write_onnx

#: From an input to the outputs.
Network = Callable[[Tensor], list[Tensor]]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        suffix (Callable): Returns the ending of the file's name.
        write (Callable): Takes a module in eval mode, the path, an input and
            :class:`FormatOptions`. Returns the number of nodes by operator.
        load (Callable): Takes the path. Returns the network in the file, on the CPU.
    """

    suffix: Callable[[], str]
    write: Callable[[nn.Module, Path, Tensor, FormatOptions], Counter[str]]
    load: Callable[[Path], Network]


def _load_onnx(path: os.PathLike) -> Network:
    ort = needed('onnxruntime')
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def network(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in session.run(None, {INPUT: image.numpy()})]

    return network


def _torch_network(load: Callable[[Path], Callable]) -> Callable[[Path], Network]:
    def loaded(path: Path) -> Network:
        module = load(path)

        @torch.no_grad()
        def network(image: Tensor) -> list[Tensor]:
            return tree_leaves(module(image))

        return network

    return loaded


#: By the name of the format.
FORMATS = {
    'onnx': Format(lambda: '.onnx', write_onnx, _load_onnx),
    'torch-export': Format(
        lambda: '.pt2', torch_program.write_program, _torch_network(torch_program.load_program)
    ),
    'aot-inductor': Format(
        torch_program.compiled_suffix,
        torch_program.write_compiled,
        _torch_network(torch_program.load_compiled),
    ),
    'torchscript': Format(
        lambda: '.pt', torchscript.write_script, _torch_network(torchscript.load_script)
    ),
}
