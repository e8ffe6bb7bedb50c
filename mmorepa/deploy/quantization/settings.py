"""How a checkpoint is to be quantized."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError

#: How activation ranges may be found, by backend; the first is the default.
METHODS = dict(onnxruntime=('minmax', 'entropy', 'percentile'), torch=('histogram', 'minmax'))
#: The ending of the file that a backend writes: an ONNX graph, or a TorchScript program.
SUFFIXES = dict(onnxruntime='.onnx', torch='.pt')


@dataclass(frozen=True)
class Settings:
    """How to quantize.

    Attributes:
        backend (str): ``'onnxruntime'`` or ``'torch'``.
        mode (str): ``'static'`` fixes the ranges of activations on calibration images;
            ``'dynamic'``, which only ONNX Runtime has, finds them anew for each input.
        per_channel (bool): Whether each output channel of a weight has a scale, or the tensor one.
            In mode ``'dynamic'`` the weights of convolutions have one scale with either.
        method (str, optional): How a static range is found, one of :data:`METHODS` of the backend.
            ``minmax`` takes all that was seen. ``entropy`` and ``percentile`` clip outliers as ONNX
            Runtime does, ``histogram`` (least squared error) as torch does. Defaults to the
            backend's first method.
        reduce_range (bool): Whether ONNX Runtime uses 7 bits for weights. This is for x86 CPUs
            without VNNI, whose int16 sums may saturate. torch's x86 backend always leaves one bit
            of activations out.

    Raises:
        UserError: If a value is not known or the backend does not have it.
    """

    backend: str = 'onnxruntime'
    mode: str = 'static'
    per_channel: bool = True
    method: str | None = None
    reduce_range: bool = False

    def __post_init__(self):
        if self.backend not in METHODS:
            raise UserError(f'backend {self.backend!r} is not known: choose {" or ".join(METHODS)}')
        if self.mode not in ('static', 'dynamic'):
            raise UserError(f'mode {self.mode!r} is not known: choose static or dynamic')
        if self.backend == 'torch' and self.mode == 'dynamic':
            raise UserError(
                "torch's dynamic quantization has no convolutions: choose mode static, or backend "
                'onnxruntime'
            )
        if self.reduce_range and self.backend == 'torch':
            raise UserError('reduce_range is of backend onnxruntime: leave it out')
        if self.method is None:
            if self.mode == 'static':
                object.__setattr__(self, 'method', METHODS[self.backend][0])
        elif self.mode == 'dynamic':
            raise UserError(f'method {self.method!r} is of mode static: leave it out')
        elif self.method not in METHODS[self.backend]:
            raise UserError(
                f'backend {self.backend} has no method {self.method!r}: '
                f'choose {" or ".join(METHODS[self.backend])}'
            )

    @property
    def per_channel_convolutions(self) -> bool:
        """Whether each output channel of a convolution has a scale: ``ConvInteger`` has but one."""
        return self.per_channel and self.mode == 'static'

    @property
    def suffix(self) -> str:
        """The ending of the file that the backend writes."""
        return SUFFIXES[self.backend]
