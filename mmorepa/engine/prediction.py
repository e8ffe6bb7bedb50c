"""Predicting images, and drawing what was predicted by the libraries' own visualizers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope, init_default_scope
from mmengine.structures import BaseDataElement
from torch import nn

from ..checkpoints import load_model
from ..errors import UserError, explained_building, first_line
from ..writing import check_out, written_whole
from .data import innermost
from .non_finite import refuse_non_finite_outputs
from .quiet import quiet_mmengine

#: The visualizer of each library.
VISUALIZER = {
    'mmpretrain': 'UniversalVisualizer',
    'mmdet': 'DetLocalVisualizer',
    'mmseg': 'SegLocalVisualizer',
}


class Predictor:
    """A model that predicts images and draws its predictions.

    Args:
        cfg (Config): A config of mmpretrain, mmdet or mmseg with a ``test_dataloader``, whose
            pipeline the images go through.
        checkpoint (str | os.PathLike): The checkpoint, in any form.

    Raises:
        UserError: If the config has no test pipeline or is of another library, or the checkpoint
            does not fit.
    """

    def __init__(self, cfg: Config, checkpoint: str | os.PathLike):
        self.scope = cfg.get('default_scope')
        if self.scope not in VISUALIZER:
            raise UserError(
                f'{Path(cfg.filename).name} has default_scope={self.scope!r}: wanted one of '
                f'{", ".join(VISUALIZER)}'
            )
        loader = cfg.get('test_dataloader')
        if not loader:
            raise UserError(f'{Path(cfg.filename).name} has no test_dataloader: wanted one')
        self.config = Path(cfg.filename).name
        loaded = load_model(cfg, checkpoint)
        self.model: nn.Module = loaded.model
        init_default_scope(self.scope)
        # Of several data sets inside of a wrapper the first, as calibration does.
        dataset = next(innermost(loader.dataset))
        #: How :func:`read_image` is to read an image, by the pipeline's own loader.
        self.reading = {
            key: step[key]
            for step in dataset.pipeline
            if step['type'].rpartition('.')[2].startswith('LoadImage')
            for key in ('color_type', 'imdecode_backend', 'to_float32')
            if key in step
        }
        # Images come as arrays, and nothing is known of what is on them.
        self.pipeline = Compose(
            [
                step
                for step in dataset.pipeline
                if not step['type'].rpartition('.')[2].startswith('Load')
            ]
        )
        self.meta = _meta_of(loaded.checkpoint, dataset, self.scope)

    @torch.no_grad()
    def predict(self, image: np.ndarray) -> BaseDataElement:
        """The library's data sample for an image that was read with :attr:`reading`."""
        height, width = image.shape[:2]
        data = dict(img=image, img_path='', img_id=0, ori_shape=(height, width))
        data['img_shape'] = data['ori_shape']
        with (
            explained_building(self.config),
            DefaultScope.overwrite_default_scope(self.scope),
            refuse_non_finite_outputs(self.model),
        ):
            data = self.pipeline(data)
            return self.model.test_step(pseudo_collate([data]))[0]

    def draw(self, image: np.ndarray, sample: BaseDataElement, score: float) -> bytes:
        """The picture of an image with its prediction, labels, boxes or masks, as a PNG file.

        Args:
            image (np.ndarray): (H, W, 3), BGR, uint8.
            sample (BaseDataElement): From :meth:`predict`.
            score (float): Boxes of lower scores are left out.
        """
        visualizer = VISUALIZERS.build(
            dict(type=f'{self.scope}.{VISUALIZER[self.scope]}', name=f'{self.scope}-predictions')
        )
        visualizer.dataset_meta = self.meta
        options = dict(draw_gt=False)
        if self.scope == 'mmpretrain':
            draw, options['classes'] = visualizer.visualize_cls, self.meta.get('classes')
            # Letters do not fit into a picture that is smaller.
            options['resize'] = max(224, *image.shape[:2])
        else:
            draw, options['name'] = visualizer.add_datasample, 'prediction'
            options |= dict(pred_score_thr=score) if self.scope == 'mmdet' else {}
        arguments = [mmcv.bgr2rgb(image)]
        if self.scope == 'mmpretrain':
            draw(*arguments, sample, **options)
        else:
            draw(image=arguments[0], data_sample=sample, **options)
        return cv2.imencode('.png', mmcv.rgb2bgr(visualizer.get_image()))[1].tobytes()


def _meta_of(checkpoint, dataset: dict, scope: str) -> dict:
    """Names and colours of the classes: what training noted, or what the data set says."""
    meta = dict(checkpoint.get('meta', {}).get('dataset_meta') or {})
    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(dataset['type'])
    return {**getattr(kind, 'METAINFO', {}), **dataset.get('metainfo', {}), **meta}


def predict_files(
    cfg: Config,
    checkpoint: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    score: float = 0.3,
    force: bool = False,
) -> list[Path]:
    """Predict image files and write a picture of each prediction.

    Args:
        cfg (Config): See :class:`Predictor`.
        checkpoint (str | os.PathLike): See :class:`Predictor`.
        images (Sequence[str | os.PathLike]): The image files.
        out (str | os.PathLike): The folder that gets ``<name of the image>.png``.
        score (float): Boxes of lower scores are left out. Defaults to 0.3.
        force (bool): Whether to replace pictures that are there. Defaults to False.

    Returns:
        list[Path]: The pictures.

    Raises:
        UserError: As :class:`Predictor`, and if an image cannot be read or predicted, two have one
            name, or a picture is there already. Then nothing is written.
    """
    places: dict[Path, Path] = {}
    for image in map(Path, images):
        place = check_out(Path(out, f'{image.stem}.png'), [image], force, done='predicted')
        if place in places:
            raise UserError(f'{places[place]} and {image} have one name: predict one at a time')
        places[place] = image
    arrays = {place: read_image(image) for place, image in places.items()}
    pictures = {}
    with quiet_mmengine():
        predictor = Predictor(cfg, checkpoint)
        for place, array in arrays.items():
            image = read_image(places[place], **predictor.reading) if predictor.reading else array
            try:
                sample = predictor.predict(image)
                pictures[place] = predictor.draw(array, sample, score)
            except cv2.error as error:  # of a shape that cannot be resized
                height, width = array.shape[:2]
                raise UserError(
                    f'{places[place]}, {width}x{height} pixels, cannot be predicted or drawn: '
                    f'{first_line(error)}'
                ) from None
    for place, picture in pictures.items():
        with written_whole(place) as temporary:
            temporary.write_bytes(picture)
    return list(places)


def read_image(
    path: Path,
    color_type: str = 'color',
    imdecode_backend: str | None = None,
    to_float32: bool = False,
) -> np.ndarray:
    """An image file as (H, W, 3), BGR, uint8, or as these arguments of mmcv's loader say."""
    if not path.is_file():
        raise UserError(f'no image at {path}: check the path')
    content = path.read_bytes()
    image = mmcv.imfrombytes(content, color_type, backend=imdecode_backend) if content else None
    if image is None:
        raise UserError(f'{path} is no image that can be read: wanted a JPEG, PNG or similar')
    return image.astype(np.float32) if to_float32 else image
