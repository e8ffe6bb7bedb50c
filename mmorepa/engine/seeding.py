"""Random numbers that depend on the position in the training, not on how it got there.

A resumed training therefore draws the same numbers as an uninterrupted one, for the order of the
data, augmentation in any number of worker processes, and dropout. MMEngine by itself restores only
the order of the data.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Sampler

from ..config_types import is_of_type

#: Independent streams of random numbers.
EPOCH, ITERATION, SAMPLE = range(3)


def seed_everything(seed: int, *place: int) -> None:
    """Seed Python, NumPy and torch, on CPU and CUDA, for a position in a training.

    Args:
        seed (int): The training's seed.
        place (int): The stream and the position in it.
    """
    words = np.random.SeedSequence(seed, spawn_key=place).generate_state(4)
    number = int(words[:2].view(np.uint64)[0])
    random.seed(number)
    np.random.seed(words)
    # torch.manual_seed keeps a call, with its traceback, for each kind of device not in use: that
    # takes more time than a small image takes to load, and memory for each sample.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)


@HOOKS.register_module()
class IterSeedHook(Hook):
    """Seeds the training process before each epoch and each iteration."""

    priority = 'HIGHEST'

    def before_train_epoch(self, runner: Runner) -> None:
        seed_everything(runner.seed, EPOCH, runner.epoch)
        batch_sampler = runner.train_dataloader.batch_sampler
        if isinstance(batch_sampler, SeededBatchSampler) and isinstance(
            runner.train_loop, EpochBasedTrainLoop
        ):
            batch_sampler.epoch = runner.epoch

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seed_everything(runner.seed, ITERATION, runner.iter)


@DATA_SAMPLERS.register_module()
class SeededBatchSampler(Sampler):
    """Passes on another batch sampler's batches and gives each sample a seed for its augmentation.

    The seed travels with the indices, so it does not matter which process loads them.

    Args:
        sampler (Sampler): Yields the indices.
        batch_size (int): The number of samples in a batch.
        drop_last (bool): Leave out a last batch that is not full. Defaults to False.
        batch_sampler (dict, optional): The config of the batch sampler that makes the batches.
            Defaults to torch's.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict | None = None,
    ):
        if batch_sampler is None:
            self.batches = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.batches = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self.sampler = sampler
        self.batch_size = batch_size
        # The seed that the Runner gave this process when it was built.
        self.seed = torch.initial_seed()
        #: The number of the next pass over the data.
        self.epoch = 0

    def __iter__(self) -> Iterator[SeededBatch]:
        epoch = self.epoch
        self.epoch += 1
        for number, indices in enumerate(self.batches):
            yield SeededBatch(indices, self.seed, (SAMPLE, get_rank(), epoch, number))

    def __len__(self) -> int:
        return len(self.batches)


class SeededBatch:
    """The indices of a batch. Iterating over them seeds the process before each index.

    Args:
        indices (Sequence): The indices into the dataset.
        seed (int): The training's seed.
        place (tuple[int, ...]): The position of this batch in the training.
    """

    def __init__(self, indices: Sequence, seed: int, place: tuple[int, ...]):
        self.indices = indices
        self.seed = seed
        self.place = place

    def __iter__(self) -> Iterator:
        for position, index in enumerate(self.indices):
            seed_everything(self.seed, *self.place, position)
            yield index

    def __len__(self) -> int:
        return len(self.indices)


def seed_samples(cfg: Config) -> None:
    """Put a :class:`SeededBatchSampler` around the batch sampler of a config's training data.

    Args:
        cfg (Config): Changed in place.
    """
    loader = cfg.get('train_dataloader')
    if not isinstance(loader, dict):
        return
    inner = loader.get('batch_sampler')
    if inner is not None and is_of_type(inner, 'SeededBatchSampler'):
        return
    seeded = dict(type='mmorepa.SeededBatchSampler')
    if inner is not None:
        seeded['batch_sampler'] = inner
    elif 'drop_last' in loader:
        seeded['drop_last'] = loader.pop('drop_last')
    loader['batch_sampler'] = seeded
