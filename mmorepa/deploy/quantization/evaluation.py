"""Metrics of a config's test set, again and again over the same data loader."""

from __future__ import annotations

import logging

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import nn

from ...engine.data import build_loader
from ...engine.quiet import quiet_mmengine
from ...engine.run import as_numbers
from ...errors import UserError

#: What the libraries' configs are compared by.
MAIN = ('accuracy/top1', 'coco/bbox_mAP', 'mIoU')


class TestSet:
    """The test data and evaluator of a config.

    Args:
        cfg (Config): A config of any OpenMMLab library.

    Raises:
        UserError: If the config lacks one of them, or the files are missing.
    """

    __test__ = False  # pytest takes the name for its own

    def __init__(self, cfg: Config):
        if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
            raise UserError('the config has no test_dataloader or no test_evaluator: wanted both')
        self.loader = build_loader(cfg, 'test_dataloader')
        self.evaluator = Evaluator(cfg.test_evaluator)
        self.evaluator.dataset_meta = getattr(self.loader.dataset, 'metainfo', None)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float | list]:
        """The metrics of a model, by its ``test_step``, in eval mode."""
        model.eval()
        # Without the tables that evaluators log.
        with quiet_mmengine(logging.WARNING):
            for data in self.loader:
                outputs = model.test_step(data)
                self.evaluator.process(data_samples=outputs, data_batch=data)
            metrics = self.evaluator.evaluate(len(self.loader.dataset))
        return as_numbers(metrics)


def main_metric(metrics: dict[str, float | list]) -> str | None:
    """The name of the metric to compare by: one of :data:`MAIN`, else the first single number."""
    numbers = [name for name, value in metrics.items() if not isinstance(value, list)]
    return next((name for name in (*MAIN, *numbers) if name in numbers), None)
