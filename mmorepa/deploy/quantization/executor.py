"""Running an int8 file, on its own and in the place of a model's network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import UserError
from ..export.onnx_file import needed
from ..export.tensor_model import kind_of

#: The head whose raw outputs end the network, by what the model is.
HEADS = dict(classifier='head', segmentor='decode_head', detector='bbox_head')

Executor = Callable[[Tensor], list[Tensor]]


def open_int8(path: str | os.PathLike) -> Executor:
    """A file that was written by this package, as a function from an image to raw outputs.

    Args:
        path (str | os.PathLike): ``.onnx`` or ``.pt``.

    Returns:
        Executor: From (N, 3, H, W), normalised, to the tensors of
        :class:`mmorepa.deploy.export.TensorModel`, on the CPU.

    Raises:
        UserError: If there is no such file or it is of another kind.
        ImportError: If it wants onnxruntime, which is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no model at {path}: check the path')
    if path.suffix == '.onnx':
        session = needed('onnxruntime').InferenceSession(
            str(path), providers=['CPUExecutionProvider']
        )
        (image,) = session.get_inputs()
        return lambda x: [
            torch.from_numpy(output) for output in session.run(None, {image.name: x.numpy()})
        ]
    if path.suffix == '.pt':
        program = torch.jit.load(path, map_location='cpu')
        return lambda x: list(program(x))
    raise UserError(f'{path} is no int8 model: wanted a .onnx or .pt file')


@contextmanager
def replaced_network(model: nn.Module, execute: Executor) -> Iterator[nn.Module]:
    """While the block runs, the model predicts with ``execute`` in the place of its network.

    Preprocessing and postprocessing stay the model's own, so that it can be evaluated as any other.
    What is replaced is ``extract_feat``, which gives what the whole network would, and the head's
    ``forward``, which passes that on. A two-stage detector keeps its RoI head, in float, because
    that runs on boxes.

    Args:
        model (nn.Module): Classifier, single- or two-stage detector, or segmentor.
        execute (Executor): From :func:`open_int8`.

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
