"""Files of ``torch.export``, and what AOTInductor makes of them."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.quiet import lost, quiet_torch
from ...errors import UserError, first_line
from .format_options import FormatOptions


def write_program(
    model: nn.Module, path: Path, sample: Tensor, options: FormatOptions
) -> Counter[str]:
    """Write a module with ``torch.export.save``.

    Args:
        model (nn.Module): A module in eval mode, from one tensor to a tuple of tensors.
        path (Path): The file.
        sample (Tensor): An input, (N, C, H, W). If sizes stay open, it has to hold two images or
            more, so large that no feature map in the network is a single pixel.
        options (FormatOptions): The options. If sizes stay open, torch derives the smallest size
            from ``sample``.

    Returns:
        Counter[str]: The number of nodes by operator.

    Raises:
        UserError: If this torch cannot do it at all, or not for this module.
    """
    program = export_program(model, sample, options.dynamic)
    # Not into the file: torch wants the ending .pt2 of its name, and aborts where a disk is full.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=options.extra_files)
    path.write_bytes(content.getbuffer())
    return operators(program)


def load_program(path: os.PathLike) -> nn.Module:
    """The module in a file of :func:`write_program`."""
    with open(path, 'rb') as file:
        return torch.export.load(file).module()


def export_program(model: nn.Module, sample: Tensor, dynamic: bool):
    """The ``torch.export.ExportedProgram`` of a module; see :func:`write_program`."""
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},) if dynamic else None
    with quiet_torch(), torch.no_grad():
        try:
            return torch.export.export(model, (sample,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch has dozens of kinds
            raise UserError(
                f'torch.export cannot export this model: {first_line(error)}; '
                'take the format onnx or torchscript'
            ) from None


def operators(program) -> Counter[str]:
    """The number of nodes by operator in an ``ExportedProgram``."""
    calls = (node.target for node in program.graph.nodes if node.op == 'call_function')
    return Counter(call.__name__.partition('.')[0] for call in calls)


def compiled_suffix() -> str:
    """Of what AOTInductor of this torch writes: ``.so`` before torch 2.6, then ``.pt2``."""
    import torch._inductor

    return '.pt2' if hasattr(torch._inductor, 'aoti_compile_and_package') else '.so'


def write_compiled(
    model: nn.Module, path: Path, sample: Tensor, options: FormatOptions
) -> Counter[str]:
    """Compile a module with AOTInductor into a library that holds code and weights.

    It runs on CPUs with the instructions of this one, from Python or C++. The arguments are those
    of :func:`write_program`. A C++ compiler is needed, and there is no place for the metadata.
    """
    program = export_program(model, sample, options.dynamic)
    if shutil.which(os.environ.get('CXX', 'g++')) is None:
        raise UserError('AOTInductor needs a C++ compiler, found none: install g++ or set CXX')
    suffix = compiled_suffix()
    # torch chooses the name of what it writes by the ending, and leaves files beside it.
    with tempfile.TemporaryDirectory() as folder, quiet_torch(), lost(sys.stderr), torch.no_grad():
        target = Path(folder, f'model{suffix}')
        try:
            if suffix == '.pt2':
                torch._inductor.aoti_compile_and_package(program, package_path=str(target))
            else:
                torch._inductor.aot_compile(
                    program.module(),
                    (sample,),
                    options={'aot_inductor.output_path': str(target)},
                )
        except Exception as error:  # of torch, or of the compiler
            raise UserError(f'AOTInductor cannot compile this model: {first_line(error)}') from None
        shutil.copyfile(target, path)
    return operators(program)


def load_compiled(path: os.PathLike) -> Callable[[Tensor], list[Tensor]]:
    """The function in a file of :func:`write_compiled`."""
    import torch._inductor

    suffix = compiled_suffix()
    # While it is loaded the file has to be there, under a name with this ending.
    folder = tempfile.TemporaryDirectory()
    named = Path(folder.name, f'model{suffix}')
    shutil.copyfile(path, named)
    if suffix == '.pt2':
        run = torch._inductor.aoti_load_package(str(named))
    else:
        run = torch._export.aot_load(str(named), 'cpu')

    def network(image: Tensor, folder=folder) -> list[Tensor]:
        return run(image)

    return network
