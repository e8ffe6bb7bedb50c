"""What has to happen to an image before the network sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Preprocessing:
    """What the data preprocessor of an OpenMMLab model does with a batch.

    Images are read as mmcv and OpenCV read them: BGR, 0 to 255.

    Attributes:
        mean (tuple[float, ...]): The mean of each channel, in the order of the network's input.
            Empty, like ``std``, if nothing is normalised.
        std (tuple[float, ...]): The standard deviation of each channel.
        swaps_channels (bool): Whether the network takes RGB.
        pad_size_divisor (int): Height and width are padded to a multiple of this.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    swaps_channels: bool = False
    pad_size_divisor: int = 1

    @classmethod
    def of(cls, model: nn.Module) -> Preprocessing:
        """That of ``model``; nothing at all if it has no data preprocessor."""
        own = getattr(model, 'data_preprocessor', None)
        # Each library has a name of its own for the swap.
        names = ('to_rgb', '_channel_conversion', 'channel_conversion')
        # mmseg pads for training by another number.
        of_mmseg = (getattr(own, 'test_cfg', None) or {}).get('size_divisor')
        return cls(
            mean=_numbers(getattr(own, 'mean', ())),
            std=_numbers(getattr(own, 'std', ())),
            swaps_channels=any(bool(getattr(own, name, False)) for name in names),
            pad_size_divisor=getattr(own, 'pad_size_divisor', None) or of_mmseg or 1,
        )

    def metadata(self, inside: bool) -> dict[str, str]:
        """What an exported file says about it; all values are JSON.

        Args:
            inside (bool): Whether the graph does the preprocessing and takes pixels as they are
                read.
        """
        order = 'RGB' if self.swaps_channels and not inside else 'BGR'
        normalisation = dict(mean=self.mean, std=self.std) if self.mean and not inside else {}
        values = dict(channel_order=order, **normalisation, pad_size_divisor=self.pad_size_divisor)
        return {name: json.dumps(value) for name, value in values.items()}

    def describe(self, inside: bool) -> str:
        """One line on what the exported file takes; see :meth:`metadata`."""
        order = 'RGB' if self.swaps_channels and not inside else 'BGR'
        if inside or not self.mean:
            return f'{order}, pixels from 0 to 255'
        mean, std = (
            '(' + ', '.join(f'{number:g}' for number in numbers) + ')'
            for numbers in (self.mean, self.std)
        )
        return f'{order}, (pixel - {mean}) / {std}'

    def undo(self, images: Tensor) -> Tensor:
        """The pixels, (N, 3, H, W) and BGR, that make a network's input ``images``."""
        if self.mean:
            images = images * images.new_tensor(self.std)[:, None, None]
            images = images + images.new_tensor(self.mean)[:, None, None]
        return images.flip(1) if self.swaps_channels else images


class Preprocessed(nn.Module):
    """A network that takes pixels.

    The input is float32 whatever the network is: in float16 the difference to the mean would lose
    digits.

    Args:
        network (nn.Module): The network, such as a :class:`mmorepa.deploy.export.TensorModel`.
        preprocessing (Preprocessing): The preprocessing that the network wants.
    """

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing
        self.dtype = torch.float32
        shape = (1, -1, 1, 1)
        for name, default in dict(mean=0.0, std=1.0).items():
            values = getattr(preprocessing, name) or (default,)
            self.register_buffer(name, torch.tensor(values).view(shape), persistent=False)
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), BGR, 0 to 255, float32, to the network's outputs."""
        if self.preprocessing.swaps_channels:
            image = image.flip(1)
        return self.network(((image - self.mean) / self.std).to(self.dtype))

    def half(self) -> Preprocessed:
        """Make the network, but not the input, float16."""
        self.network.half()
        self.dtype = torch.float16
        return self

    def output_names(self, outputs) -> list[str]:
        """Those of the network."""
        return self.network.output_names(outputs)


def _numbers(values) -> tuple[float, ...]:
    # Seven digits are what a float32 has.
    return tuple(float(f'{value:.7g}') for value in torch.as_tensor(values).flatten().tolist())
