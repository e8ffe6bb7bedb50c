"""Running an int8 file, on its own or in the place of a model's network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import UserError
from ..export.formats import FORMATS
from ..export.tensor_model import kind_of
from .settings import SUFFIXES

#: The head whose raw outputs end the network, by what the model is.
HEADS = dict(classifier='head', segmentor='decode_head', detector='bbox_head')

Executor = Callable[[Tensor], list[Tensor]]


def open_int8(path: str | os.PathLike) -> Executor:
    """Open a file that this package wrote, as a function from images to raw outputs.

    Args:
        path (str | os.PathLike): A ``.onnx`` or ``.pt`` file.

    Returns:
        Executor: A function from images, (N, 3, H, W), normalised, to the tensors of
        :class:`mmorepa.deploy.export.TensorModel`, on the CPU.

    Raises:
        UserError: If there is no such file, or it has another ending.
        ImportError: If the file needs onnxruntime, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no model at {path}: check the path')
    if path.suffix in SUFFIXES.values():
        return FORMATS['onnx' if path.suffix == '.onnx' else 'torchscript'].load(path)
    raise UserError(f'{path} is no int8 model: wanted a .onnx or .pt file')


@contextmanager
def replaced_network(model: nn.Module, execute: Executor) -> Iterator[nn.Module]:
    """A context in which the model predicts with ``execute`` in the place of its network.

    Preprocessing and postprocessing stay the model's own, so the model can be evaluated like any
    other. ``extract_feat`` is replaced and returns what the whole network would; the head's
    ``forward`` is replaced and passes that on. A two-stage detector keeps its RoI head, in float,
    because that runs on boxes.

    Args:
        model (nn.Module): A classifier, single- or two-stage detector, or segmentor.
        execute (Executor): What :func:`open_int8` returned.

    Raises:
        UserError: If the model is none of these.
    """
    kind = kind_of(model)
    if kind not in (*HEADS, 'two-stage detector'):
        raise UserError(
            f'{type(model).__name__} is no classifier, detector or segmentor: '
            'its network cannot be replaced'
        )
    two_stage = kind == 'two-stage detector'
    head = getattr(model, 'rpn_head' if two_stage else HEADS[kind])
    nesting = None
    passed_on: Any = None

    def run(image: Tensor):
        nonlocal nesting
        if nesting is None:
            nesting = pytree.tree_structure(raw(image[:1]))
        return pytree.tree_unflatten(execute(image), nesting)

    def raw(image: Tensor):
        with ExitStack() as stack:
            for patch in patches:
                patch.stop()
                stack.callback(patch.start)
            if not two_stage:
                return model(image)
            feats = model.extract_feat(image)
            return feats, head(feats)

    def extract_feat(image: Tensor, *args, **kwargs):
        nonlocal passed_on
        if not two_stage:
            return run(image)
        feats, passed_on = run(image)
        return feats

    def forward(feats, *args, **kwargs):
        return passed_on if two_stage else feats

    patches = [
        mock.patch.object(model, 'extract_feat', extract_feat),
        mock.patch.object(head, 'forward', forward),
    ]
    with ExitStack() as stack:
        for patch in patches:
            patch.start()
            stack.callback(patch.stop)
        yield model
