"""From a checkpoint to a file that runs without this package."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from ...checkpoints import load_model
from ...checkpoints.comparing import input_channels
from ...checkpoints.conversion import refuse_qat_form
from ...convs import Agreement, switch_to_deploy
from ...convs.convert.squeezing import TOLERANCE
from ...errors import UserError
from ...version import __version__
from ...writing import check_out, written_whole
from . import float16
from .format_options import OPSET, FormatOptions
from .formats import FORMATS
from .preprocessing import Preprocessed, Preprocessing
from .probes import compare_file, random_images, run_model, test_images
from .tensor_model import TensorModel


@dataclass(frozen=True)
class Export:
    """What an export did.

    Attributes:
        source_form (str): The form of the checkpoint, ``'training'``, ``'plain'`` or
            ``'deploy'``.
        outputs (dict[str, tuple[int, ...]]): The names of the outputs, and their shapes for the
            first probe.
        nodes (Counter[str]): The number of nodes in the graph by operator.
        agreement (Agreement): How the file's outputs agree with those of the checkpoint's own form
            in float32; the worst over all images.
        images (int): The number of images on which they were compared.
        metadata (dict[str, str]): What the file says of itself.
        out (Path): The file.
    """

    source_form: str
    outputs: dict[str, tuple[int, ...]]
    nodes: Counter[str]
    agreement: Agreement
    images: int
    metadata: dict[str, str]
    out: Path


def export(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    format: str = 'onnx',
    *,
    fp16: bool = False,
    size: tuple[int, int] = (224, 224),
    opset: int = OPSET,
    static: bool = False,
    with_preprocessing: bool = False,
    full_size: bool = False,
    images: int = 0,
    force: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Export:
    """Write the deploy form of a checkpoint as a file that runs without this package.

    Before the file gets its name it is loaded, run, and compared with the checkpoint's own form in
    PyTorch. This is done on random images, of two batch sizes and two image sizes if these are
    open, and on images of the config's test set if any are asked for.

    Args:
        cfg (Config): The training config, or the one beside a converted checkpoint.
        checkpoint (str | os.PathLike): The checkpoint, in any form.
        out (str | os.PathLike): The file to write. Its ending has to be that of the format.
        format (str): A name of :data:`mmorepa.deploy.export.formats.FORMATS`. Defaults to
            ``'onnx'``.
        fp16 (bool): Whether weights and graph are in float16, if they fit; see
            :mod:`mmorepa.deploy.export.float16`. Defaults to False.
        size (tuple[int, int]): Height and width in pixels of the input with which the graph is
            made. Defaults to (224, 224).
        opset (int): The operator set of ONNX. Defaults to 17.
        static (bool): Whether batch 1 and ``size`` are fixed, in any format but
            ``'torchscript'``. Otherwise batch, height and width stay open. Defaults to False.
        with_preprocessing (bool): Whether channel order and normalisation are in the graph, which
            then takes float32 pixels. Defaults to False.
        full_size (bool): See :class:`mmorepa.deploy.export.TensorModel`. Defaults to False.
        images (int): The number of images of the config's test set to compare on as well. Defaults
            to 0.
        force (bool): Whether to replace an existing file. Defaults to False.
        report (Callable): Called with one line at a time about what is found. By default the lines
            are lost.

    Returns:
        Export: What was done.

    Raises:
        UserError: If the format does not have an option; if the config builds ``QATForm``; if
            ``out`` has another ending, is an input or exists already; if the checkpoint does not
            fit the config; if the model cannot be exported or float16 cannot hold it; or if the
            outputs differ by more than :data:`mmorepa.convs.convert.squeezing.TOLERANCE`, in
            float16 by more than :data:`mmorepa.deploy.export.float16.TOLERANCE`. Nothing is
            written then.
        ImportError: If the format needs a package that is not installed.
    """
    if format not in FORMATS:
        raise UserError(f'no format {format!r}: choose {", ".join(map(repr, FORMATS))}')
    if format == 'torchscript' and static:
        raise UserError('a file of format torchscript takes any size: leave static out')
    if format != 'onnx' and opset != OPSET:
        raise UserError(f'opset is of format onnx, this is {format}: leave it out')
    refuse_qat_form(cfg, 'exported')
    out = check_out(
        out,
        [checkpoint, cfg.filename],
        force,
        suffix=FORMATS[format].suffix(),
        what=f'the format {format}',
        done='exported',
    )
    source = load_model(cfg, checkpoint)
    before, form = source.model, source.form
    report(f'{checkpoint} is in {form} form')
    if source.is_average:
        report('weights: the exponential moving average that EMAHook kept')

    reference = TensorModel(before, full_size)
    network = TensorModel(switch_to_deploy(before, inplace=False), full_size)
    preprocessing = Preprocessing.of(before)
    probes = random_images(size, not static, input_channels(before))
    if images:
        probes += test_images(cfg, before, images)
    if static:
        refuse_other_sizes(probes)
    expected = run_model(reference, probes)
    names = reference.output_names(expected[0])
    shapes = [tuple(output.shape) for output in expected[0]]
    report(f'{reference.kind}: {preprocessing.describe(with_preprocessing)}')
    for name, shape in zip(names, shapes):
        report(f'  {name}: {shape_text(shape)} for {shape_text(probes[0].shape)}')
    del before, reference

    if fp16:
        check_float16(network, probes, report)
    inputs, dtype = probes, torch.float16 if fp16 else torch.float32
    if with_preprocessing:
        network, dtype = Preprocessed(network, preprocessing), torch.float32
        inputs = [preprocessing.undo(image) for image in probes]
    if fp16:
        network.half()
    inputs = [image.to(dtype) for image in inputs]

    metadata = describe_model(cfg, source.checkpoint) | preprocessing.metadata(with_preprocessing)
    options = FormatOptions(dynamic=not static, opset=opset, metadata=metadata)
    with written_whole(out) as temporary:
        nodes = FORMATS[format].write(network, temporary, inputs[0], options)
        report(graph_text(format, opset, nodes))
        agreement = compare_file(
            FORMATS[format].load(temporary),
            inputs,
            expected,
            float16.TOLERANCE if fp16 else TOLERANCE,
            static,
        )
    count = sum(len(image) for image in probes)
    report(f'against the {form} form in PyTorch on {count} images: {agreement}')
    report(f'wrote {out} ({out.stat().st_size / 2**20:.1f} MiB)')
    return Export(
        source_form=form,
        outputs=dict(zip(names, shapes)),
        nodes=nodes,
        agreement=agreement,
        images=count,
        metadata=metadata,
        out=out,
    )


def refuse_other_sizes(images: Sequence[Tensor]) -> None:
    """Raise a :class:`UserError` if the images do not have one size, that of the first."""
    height, width = images[0].shape[2:]
    for image in images:
        if image.shape != images[0].shape:
            found = ' x '.join(map(str, image.shape[2:]))
            raise UserError(
                f'the test pipeline gives an image of {found}, static fixes {height} x {width}: '
                'give that size with --size, or leave --static or --images out'
            )


def check_float16(
    network: TensorModel, images: Sequence[Tensor], report: Callable[[str], object]
) -> None:
    """Report what float16 cannot hold, one line for each layer.

    Weights that vanish are only reported, because the comparison tells what they did.

    Raises:
        UserError: If there are weights or outputs beyond the range of float16.
    """
    # Names as they are in the checkpoint.
    model = 'model.'
    for line in float16.vanishing_weights(network):
        report(line.removeprefix(model))
    beyond = [line.removeprefix(model) for line in float16.out_of_range(network, images)]
    for line in beyond:
        report(line)
    if beyond:
        raise UserError(
            f'float16 cannot hold this model in {len(beyond)} places, the first is {beyond[0]}; '
            'nothing was written'
        )


def describe_model(cfg: Config, checkpoint: dict) -> dict[str, str]:
    """Which model an exported file is of; values that are no text are JSON."""
    architecture = cfg.model.get('architecture', cfg.model.type)
    values = dict(producer=f'mmorepa {__version__}', model=architecture, form='deploy')
    classes = (checkpoint.get('meta', {}).get('dataset_meta') or {}).get('classes')
    if classes:
        values['classes'] = json.dumps(list(classes))
    return values


def graph_text(format: str, opset: int, nodes: Counter[str]) -> str:
    """One line with the number of nodes by operator, the most frequent first."""
    kind = f'onnx, opset {opset}' if format == 'onnx' else format
    counts = ', '.join(f'{count} {name}' for name, count in nodes.most_common())
    return f'graph ({kind}): {nodes.total()} nodes: {counts}'


def shape_text(shape: Sequence[int]) -> str:
    """``2 x 3 x 224 x 224``"""
    return ' x '.join(map(str, shape))
