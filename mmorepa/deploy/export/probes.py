"""The images on which an exported file is compared with the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...checkpoints.comparing import compare_outputs
from ...convs import Agreement
from ...engine.data import build_loader, image_batches
from ...errors import UserError, first_line


def random_images(size: tuple[int, int], dynamic: bool, channels: int = 3) -> list[Tensor]:
    """The same random normalised images each time.

    Args:
        size (tuple[int, int]): Height H and width W in pixels.
        dynamic (bool): Whether the file has to take other sizes too.
        channels (int): The number C of channels. Defaults to 3.

    Returns:
        list[Tensor]: (1, C, H, W) alone, or (2, C, H, W) and (1, C, H + 32, W + 64).
    """
    height, width = size
    shapes = [(1, channels, height, width)]
    if dynamic:
        shapes = [(2, channels, height, width), (1, channels, height + 32, width + 64)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_images(cfg: Config, model: nn.Module, count: int) -> list[Tensor]:
    """The first images of a config's test set, as the network takes them.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg.
        model (nn.Module): The model of the config, whose data preprocessor is used.
        count (int): The number of images; there are fewer if the test set has fewer.

    Returns:
        list[Tensor]: The images, (1, 3, H, W) each, normalised.

    Raises:
        UserError: If the data is not there.
    """
    loader = build_loader(cfg, 'test_dataloader', num_workers=0, persistent_workers=False)
    return [image[None] for batch in image_batches(loader, model, count) for image in batch]


def run_model(network: nn.Module, images: Sequence[Tensor]) -> list[list[Tensor]]:
    """The outputs for each image.

    Raises:
        UserError: If the network does not run on images alone.
    """
    outputs = []
    for image in images:
        try:
            with torch.no_grad():
                outputs.append(list(network(image)))
        except Exception as error:
            height, width = image.shape[2:]
            raise UserError(
                f'the model does not run on an image of {height} x {width}: {first_line(error)}'
            ) from None
    return outputs


def compare_file(
    network: Callable[[Tensor], list[Tensor]],
    images: Sequence[Tensor],
    expected: Sequence[Sequence[Tensor]],
    tolerance: float,
    static: bool = False,
) -> Agreement:
    """Run the network in a file and compare its outputs.

    Args:
        network (Callable): What :attr:`mmorepa.deploy.export.formats.Format.load` gave.
        images (Sequence[Tensor]): The inputs.
        expected (Sequence[Sequence[Tensor]]): The right outputs for each input.
        tolerance (float): The largest relative difference that passes.
        static (bool): Whether batch and size are fixed, for the message. Defaults to False.

    Returns:
        Agreement: The worst agreement over all inputs.

    Raises:
        UserError: If the network does not run, or its outputs differ by more.
    """
    found = []
    for image, outputs in zip(images, expected):
        size = ' x '.join(map(str, image.shape))
        try:
            found.append(compare_outputs(outputs, network(image)))
        except Exception as error:  # of a runtime, each has its own
            advice = '' if static else '. Give another --size, or fix it with --static'
            raise UserError(
                f'the exported file does not run on {size}: {first_line(error)}; nothing was '
                f'written{advice}'
            ) from None
        if not found[-1].within(tolerance):
            raise UserError(
                f'the exported file does not agree with the checkpoint on {size}: {found[-1]}, '
                f'wanted at most {tolerance:.0e} relative; nothing was written'
            )
    return Agreement.worst(found)
