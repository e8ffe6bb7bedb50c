"""Writing a module as an ONNX file."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

from ...engine.quiet import lost, quiet_torch
from ...errors import UserError, first_line
from .adaptive_pool import sizeless_pools
from .format_options import FormatOptions

#: What the graph calls its input.
INPUT = 'image'


def write_onnx(
    model: nn.Module, path: str | os.PathLike, sample: Tensor, options: FormatOptions
) -> Counter[str]:
    """Write a module as an ONNX file that ``onnx.checker`` accepts.

    This uses torch's TorchScript-based exporter. The module is exported in eval mode and as it is:
    bring it into the deploy form first.

    Args:
        model (nn.Module): A module from one tensor to a tensor or a tuple of tensors, such as a
            :class:`mmorepa.deploy.export.TensorModel`, which also names the outputs; those of
            others are ``output_0``, ... Afterwards it is in the mode, train or eval, in which it
            was before.
        path (str | os.PathLike): The file. An existing one is replaced.
        sample (Tensor): An input, (N, C, H, W). The graph has its dtype.
        options (FormatOptions): If ``dynamic``, batch, height and width of the input stay open, and
            every axis of the outputs that may depend on them; otherwise they are those of
            ``sample``. ``metadata`` becomes the file's ``metadata_props``.

    Returns:
        Counter[str]: The number of nodes by operator.

    Raises:
        UserError: If the module has an operator that the exporter or the opset lacks.
        ImportError: If onnx is not installed.
    """
    onnx = needed('onnx')
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(sample)
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        names = output_names(model, outputs)
        axes = {INPUT: {0: 'batch', 2: 'height', 3: 'width'}}
        for name, output in zip(names, outputs):
            axes[name] = {0: 'batch'}
            if output.dim() == 4:
                axes[name].update({2: f'{name}_height', 3: f'{name}_width'})
        with quiet_torch(), sizeless_pools(model, None if options.dynamic else sample):
            _export(
                model,
                sample,
                path,
                opset_version=options.opset,
                input_names=[INPUT],
                output_names=names,
                dynamic_axes=axes if options.dynamic else None,
            )
        graph = onnx.load(path)
        if options.metadata:
            onnx.helper.set_model_props(graph, dict(options.metadata))
            onnx.save(graph, path)
        onnx.checker.check_model(graph, full_check=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Counter(node.op_type for node in graph.graph.node)


def _export(model: nn.Module, sample: Tensor, path: os.PathLike, **kwargs) -> None:
    try:
        # Where it fails, it prints the whole graph first.
        with lost(sys.stdout):
            torch.onnx.export(model, (sample,), str(path), dynamo=False, **kwargs)
    except (RuntimeError, ValueError) as error:  # all of the exporter's own are the former
        raise UserError(f'torch.onnx cannot export this model: {first_line(error)}') from None


def output_names(model: nn.Module, outputs: Sequence[Tensor]) -> list[str]:
    """What the model calls its outputs, else numbers."""
    if hasattr(model, 'output_names'):
        return model.output_names(outputs)
    return [f'output_{i}' for i in range(len(outputs))]


def needed(name: str) -> ModuleType:
    """Import an optional dependency.

    Raises:
        ImportError: With the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError:
        raise ImportError(f'{name} is not installed: pip install {name}') from None
