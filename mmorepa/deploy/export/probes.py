"""The images on which an exported file is compared with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from mmengine.config import Config
from torch import Tensor, nn

from ...convs import Agreement
from ...engine.data import build_loader
from ...errors import UserError
from .outputs import compare, flatten
from .silence import first_line


def random_images(size: tuple[int, int], dynamic: bool) -> list[Tensor]:
    """The same random normalised images each time.

    Args:
        size (tuple[int, int]): Height H and width W in pixels.
        dynamic (bool): Whether the file is to take other sizes too.

    Returns:
        list[Tensor]: (1, 3, H, W) alone, or (2, 3, H, W) and (1, 3, H + 32, W + 64).
    """
    height, width = size
    shapes = [(1, 3, height, width)]
    if dynamic:
        shapes = [(2, 3, height, width), (1, 3, height + 32, width + 64)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_images(cfg: Config, model: nn.Module, count: int) -> Iterator[Tensor]:
    """The first images of a config's test set, as the network takes them.

    Args:
        cfg (Config): Of mmpretrain, mmdet or mmseg.
        model (nn.Module): Its model, whose data preprocessor is used.
        count (int): How many; fewer if there are not as many.

    Yields:
        Tensor: (1, 3, H, W), normalised.

    Raises:
        UserError: If the data is not there.
    """
    cfg = cfg.copy()
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    batches = (
        model.data_preprocessor(batch, False)['inputs']
        for batch in build_loader(cfg, 'test_dataloader')
    )
    yield from islice((image[None] for batch in batches for image in batch), count)


def run_model(network: nn.Module, images: Sequence[Tensor]) -> list[list[Tensor]]:
    """The outputs for each image.

    Raises:
        UserError: If it does not run on images alone.
    """
    try:
        with torch.no_grad():
            return [flatten(network(image)) for image in images]
    except Exception as error:
        raise UserError(
            f'the model does not run on an image alone: {first_line(error)}; what it needs '
            'beside it cannot be exported'
        ) from None


def compare_file(
    network: Callable[[Tensor], list[Tensor]],
    images: Sequence[Tensor],
    expected: Sequence[Sequence[Tensor]],
    tolerance: float,
) -> Agreement:
    """Run what a file holds and compare.

    Args:
        network (Callable): What :attr:`mmorepa.deploy.export.formats.Format.load` gave.
        images (Sequence[Tensor]): Its inputs.
        expected (Sequence[Sequence[Tensor]]): The right outputs for each.
        tolerance (float): Largest relative difference that passes.

    Returns:
        Agreement: The worst.

    Raises:
        UserError: If it does not run, or differs by more.
    """
    found = []
    for image, outputs in zip(images, expected):
        size = ' x '.join(map(str, image.shape))
        try:
            found.append(compare(outputs, network(image)))
        except Exception as error:  # of a runtime, each has its own
            raise UserError(
                f'the exported file does not run on {size}: {first_line(error)}; nothing was '
                'written. Give another --size, or fix it with --static'
            ) from None
        if not found[-1].within(tolerance):
            raise UserError(
                f'the exported file does not agree with the checkpoint on {size}: {found[-1]}, '
                f'wanted at most {tolerance:.0e} relative; nothing was written'
            )
    return Agreement.worst(found)
