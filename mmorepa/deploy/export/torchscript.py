"""Files of TorchScript, for where ``torch.export`` is missing."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.quiet import quiet_torch
from ...errors import UserError, first_line
from .format_options import FormatOptions


def write_script(
    model: nn.Module, path: Path, sample: Tensor, options: FormatOptions
) -> Counter[str]:
    """Write a module as TorchScript, by tracing it. Batch, height and width stay open.

    Args:
        model (nn.Module): A module in eval mode, from one tensor to a tuple of tensors.
        path (Path): The file.
        sample (Tensor): An input, (N, C, H, W).
        options (FormatOptions): The options, of which the metadata is used.

    Returns:
        Counter[str]: The number of nodes by operator.

    Raises:
        UserError: If the module cannot be traced.
    """
    with quiet_torch(), torch.no_grad():
        try:
            script = torch.jit.trace(model, (sample,), check_trace=False)
        except Exception as error:
            raise UserError(f'torch.jit cannot trace this model: {first_line(error)}') from None
    # Not by its name, after which torch would call the archive's folder.
    with open(path, 'wb') as file:
        torch.jit.save(script, file, _extra_files=options.extra_files)
    kinds = [node.kind() for node in script.inlined_graph.nodes()]
    return Counter(kind.removeprefix('aten::') for kind in kinds if kind.startswith('aten::'))


def load_script(path: os.PathLike) -> nn.Module:
    """The module in a file of :func:`write_script`."""
    return torch.jit.load(str(path), map_location='cpu')
