"""What 8 bits do to each layer of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
)

from ..export import TensorModel

#: torch.ao's: a uint8 range that minimises the squared error on what it has seen.
INPUT_FAKE_QUANT = FakeQuantize.with_args(
    observer=HistogramObserver, quant_min=0, quant_max=255, dtype=torch.quint8
)
WEIGHT_FAKE_QUANT = {True: default_per_channel_weight_fake_quant, False: default_weight_fake_quant}


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of the deploy form.

    Signal-to-quantization-noise ratios are in dB: 10 log10 of the sum of squares of the float
    numbers over that of the differences. They are infinite where nothing differs.

    Attributes:
        name (str): The dotted name in the model.
        shape (tuple[int, ...]): The shape of the weight.
        low, high (float): The smallest and the largest weight.
        peak (float): The largest magnitude of a weight over the weights' standard deviation.
        spread (float): The largest channel's largest magnitude over that of the median channel.
        channel_peaks (list[float]): The largest magnitude in each output channel.
        unfolded (dict[str, float], optional): ``peak`` and ``spread`` before the BatchNorm was
            folded, where the checkpoint has one.
        weight_sqnr (float): The ratio of the weight with a scale for each channel.
        tensor_weight_sqnr (float): The ratio of the weight with one scale.
        input_range (tuple[float, float]): The range of the input on the calibration images.
        input_sqnr (float): The ratio of the input.
        output_sqnr (float): The ratio of the output when input and weight are quantized.
        network_sqnr (float): The ratio of the network's raw outputs when this layer alone is
            quantized.
        metrics (dict[str, float]): The test set's metrics when this layer alone is quantized; empty
            if it was not evaluated.
    """

    name: str
    shape: tuple[int, ...]
    low: float
    high: float
    peak: float
    spread: float
    channel_peaks: list[float]
    unfolded: dict[str, float] | None
    weight_sqnr: float
    tensor_weight_sqnr: float
    input_range: tuple[float, float]
    input_sqnr: float
    output_sqnr: float
    network_sqnr: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """All layers of a network, and the network with all of them quantized.

    Attributes:
        layers (list[Layer]): The layers in the network's order.
        per_channel (bool): Whether weights had a scale for each output channel.
            ``tensor_weight_sqnr`` does not depend on it.
        float_metrics (dict[str, float]): The test set's metrics with nothing quantized; empty if it
            was not evaluated.
        all_metrics (dict[str, float]): The metrics with all layers quantized.
        all_sqnr (float): The ratio of the network's raw outputs with all layers quantized.
    """

    layers: list[Layer]
    per_channel: bool
    float_metrics: dict[str, float]
    all_metrics: dict[str, float]
    all_sqnr: float


class Noise:
    """Adds up a signal and its quantization noise."""

    def __init__(self):
        self.signal = self.noise = 0.0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add two tensors of one shape."""
        before, after = before.detach().double(), after.detach().double()
        self.signal += before.square().sum().item()
        self.noise += (before - after).square().sum().item()

    def add_all(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Add several tensors, each with its counterpart."""
        for pair in zip(before, after):
            self.add(*pair)

    @property
    def sqnr(self) -> float:
        """The ratio in dB; see :class:`Layer`."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


class Quantizer:
    """torch.ao's fake quantization of one layer's input and weight.

    Args:
        layer (nn.Conv2d | nn.Linear): The layer. Only :meth:`active` changes it.
        per_channel (bool): See :class:`mmorepa.deploy.quantization.Settings`.
    """

    def __init__(self, layer: nn.Module, per_channel: bool):
        self.layer = layer
        self.input = INPUT_FAKE_QUANT()
        self.input.disable_fake_quant()
        self.weight = fake_quantized(layer.weight, per_channel)
        self.noise = Noise()

    def observe(self, module: nn.Module, args: tuple) -> None:
        """Note the range of the input; this is a pre-hook of the layer."""
        self.input(args[0])

    def freeze(self) -> None:
        """End observing: from now on the input is rounded."""
        self.input.enable_fake_quant()
        self.input.disable_observer()

    def rounded(self, module: nn.Module, args: tuple) -> tuple:
        """Round the input; this is a pre-hook of the layer."""
        rounded = self.input(args[0])
        self.noise.add(args[0], rounded)
        return (rounded, *args[1:])

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the layer computes with rounded input and weight."""
        kept = self.layer.weight.data
        hook = self.layer.register_forward_pre_hook(self.rounded)
        self.layer.weight.data = self.weight
        try:
            yield
        finally:
            self.layer.weight.data = kept
            hook.remove()


@torch.no_grad()
def measure(
    model: nn.Module,
    calibration: Sequence[Tensor],
    per_channel: bool = True,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    plain: nn.Module | None = None,
    progress: Callable[[Sequence], Iterator] = iter,
) -> Measurement:
    """Quantize each layer of a network alone, and then all of them.

    Layers are the convolutions and linear layers of the deploy form that run on the images. Weights
    have 8 bits and a symmetric range. Inputs have 8 bits and the range that torch's
    ``HistogramObserver`` finds.

    Args:
        model (nn.Module): A model in deploy form. It is the same afterwards.
        calibration (Sequence[Tensor]): Batches of images, on which ranges are found and noise is
            measured.
        per_channel (bool): Whether each output channel of a weight has a scale. Defaults to True.
        evaluate (Callable, optional): Gives the metrics of the model. It is called with each layer
            quantized alone, with all layers quantized, and with none.
        plain (nn.Module, optional): The same network before BatchNorms were folded, for
            ``unfolded``.
        progress (Callable): Wraps the list of layers in a progress bar. By default there is none.

    Returns:
        Measurement: What was measured.
    """
    network = TensorModel(model)
    quantizers = {
        name: Quantizer(module, per_channel)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    expected = observe(network, quantizers, calibration)
    before = dict(plain.named_modules()) if plain else {}
    layers = [
        measure_layer(name, quantizer, network, calibration, expected, before.get(name), evaluate)
        for name, quantizer in progress(list(quantizers.items()))
    ]
    with ExitStack() as stack:
        for quantizer in quantizers.values():
            stack.enter_context(quantizer.active())
        noise = Noise()
        for batch, outputs in zip(calibration, expected):
            noise.add_all(outputs, network(batch))
        all_metrics = evaluate(model) if evaluate else {}
    return Measurement(
        layers=layers,
        per_channel=per_channel,
        float_metrics=evaluate(model) if evaluate else {},
        all_metrics=all_metrics,
        all_sqnr=noise.sqnr,
    )


def observe(
    network: TensorModel, quantizers: dict[str, Quantizer], calibration: Sequence[Tensor]
) -> list[tuple[Tensor, ...]]:
    """Let the quantizers see the images, and drop those whose layer does not run.

    Returns:
        list[tuple[Tensor, ...]]: The network's raw outputs, batch by batch.
    """
    seen = set()
    hooks = []
    for name, quantizer in quantizers.items():
        hooks.append(quantizer.layer.register_forward_pre_hook(quantizer.observe))
        hooks.append(
            quantizer.layer.register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        )
    try:
        outputs = [network(batch) for batch in calibration]
    finally:
        for hook in hooks:
            hook.remove()
    for name in set(quantizers) - seen:
        del quantizers[name]
    for quantizer in quantizers.values():
        quantizer.freeze()
    return outputs


def measure_layer(
    name: str,
    quantizer: Quantizer,
    network: TensorModel,
    calibration: Sequence[Tensor],
    expected: list[tuple[Tensor, ...]],
    before: nn.Module | None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None,
) -> Layer:
    """Measure one layer that is quantized alone; the arguments are those of :func:`measure`."""
    weight = quantizer.layer.weight.detach()
    output_noise, network_noise = Noise(), Noise()
    kept: list[Tensor] = []
    # The activation behind it may write into it.
    keep = quantizer.layer.register_forward_hook(lambda *args: kept.append(args[2].clone()))
    try:
        # Batch by batch: the feature maps of all of them would take gigabytes.
        for batch, outputs in zip(calibration, expected):
            # The input is that of the float network: what comes before is in float.
            network(batch)
            with quantizer.active():
                network_noise.add_all(outputs, network(batch))
            half = len(kept) // 2  # a layer may run several times
            output_noise.add_all(kept[:half], kept[half:])
            kept.clear()
    finally:
        keep.remove()
    input_sqnr = quantizer.noise.sqnr
    metrics = {}
    if evaluate:
        with quantizer.active():
            metrics = evaluate(network.model)
    observer = quantizer.input.activation_post_process
    return Layer(
        name=name,
        shape=tuple(weight.shape),
        low=weight.min().item(),
        high=weight.max().item(),
        **shape_of_weights(weight),
        channel_peaks=channel_peaks(weight).tolist(),
        unfolded=shape_of_weights(before.weight.detach()) if has_norm(before, quantizer) else None,
        weight_sqnr=weight_sqnr(weight, per_channel=True),
        tensor_weight_sqnr=weight_sqnr(weight, per_channel=False),
        input_range=(observer.min_val.item(), observer.max_val.item()),
        input_sqnr=input_sqnr,
        output_sqnr=output_noise.sqnr,
        network_sqnr=network_noise.sqnr,
        metrics=metrics,
    )


def has_norm(before: nn.Module | None, quantizer: Quantizer) -> bool:
    """Whether folding changed the weight of a layer."""
    return before is not None and not torch.equal(before.weight, quantizer.layer.weight)


def fake_quantized(weight: Tensor, per_channel: bool) -> Tensor:
    """A weight rounded to int8 by torch.ao."""
    return WEIGHT_FAKE_QUANT[per_channel]()(weight.detach())


def weight_sqnr(weight: Tensor, per_channel: bool) -> float:
    """The ratio of a weight rounded to int8, in dB; see :class:`Layer`."""
    noise = Noise()
    noise.add(weight, fake_quantized(weight, per_channel))
    return noise.sqnr


def channel_peaks(weight: Tensor) -> Tensor:
    """The largest magnitude in each output channel."""
    return weight.flatten(1).abs().amax(1)


def shape_of_weights(weight: Tensor) -> dict[str, float]:
    """``peak`` and ``spread`` of a weight, see :class:`Layer`."""
    peaks = channel_peaks(weight)
    return dict(
        peak=(peaks.max() / weight.std()).item(), spread=(peaks.max() / peaks.median()).item()
    )
