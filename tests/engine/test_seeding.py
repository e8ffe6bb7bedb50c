"""Random numbers by the place in training: the same in any process, new at every place."""

import json
import pickle
import random

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from mmorepa.engine.seeding import SeededBatch, SeededBatchSampler, seed_everything, seed_samples

SAMPLES, BATCH = 5, 2


class Drawing:
    """A dataset of what each library draws for a sample."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return index, draws()


def draws():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def loader(workers=0, persistent=False, **options):
    torch.manual_seed(0)
    batches = SeededBatchSampler(SequentialSampler(range(SAMPLES)), BATCH, **options)
    return DataLoader(
        Drawing(),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=persistent,
        collate_fn=list,
    )


def passes(workers=0, persistent=False):
    data = loader(workers, persistent)
    return list(data), list(data)


@pytest.fixture(scope='module')
def two_passes():
    return passes()


def test_every_sample_and_pass_draws_anew(two_passes):
    samples = [sample for batches in two_passes for batch in batches for sample in batch]
    assert [index for index, _ in samples] == [*range(SAMPLES)] * 2
    numbers = [number for _, drawn in samples for number in drawn]
    assert len(set(numbers)) == 2 * SAMPLES * 3


@pytest.mark.parametrize('workers, persistent', [(1, False), (2, True)])
def test_any_process_draws_the_same(two_passes, apart, workers, persistent):
    assert apart(passes, workers, persistent) == json.loads(json.dumps(two_passes))


def test_a_pass_alone(two_passes):
    """As a resumed training begins with it."""
    data = loader()
    data.batch_sampler.epoch = 1
    assert list(data) == two_passes[1]


def test_another_seed(two_passes):
    data = loader()
    data.batch_sampler.seed = 1
    assert not {d for b in list(data) for _, d in b} & {d for b in two_passes[0] for _, d in b}


def test_places_are_told_apart():
    """A seed followed by zeros is another place."""
    drawn = set()
    for place in [(0,), (0, 0), (1,), (0, 1), (1, 0), (0, 0, 0)]:
        seed_everything(0, *place)
        drawn.add(draws())
    assert len(drawn) == 6


def test_drop_last():
    assert [len(batch) for batch in loader()] == [2, 2, 1]
    assert [len(batch) for batch in loader(drop_last=True)] == [2, 2]
    assert (len(loader()), len(loader(drop_last=True))) == (3, 2)


@pytest.fixture
def backwards():
    @DATA_SAMPLERS.register_module()
    class Backwards(BatchSampler):
        """A batch sampler of a library's own."""

        def __init__(self, sampler, batch_size):
            super().__init__(sampler, batch_size, drop_last=False)

        def __iter__(self):
            return reversed(list(super().__iter__()))

    yield
    DATA_SAMPLERS._module_dict.pop('Backwards')


def test_around_another_batch_sampler(backwards):
    batches = list(loader(batch_sampler=dict(type='Backwards')))
    assert [index for batch in batches for index, _ in batch] == [4, 2, 3, 0, 1]


def test_indices_alone_are_not_seeded():
    """Sending a batch to a worker draws nothing in the process that sends it."""
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    batch = pickle.loads(pickle.dumps(SeededBatch([3, 4], 0, (1, 2))))
    assert len(batch) == 2
    assert torch.equal(torch.rand(2), expected)
    assert list(batch) == [3, 4]


@pytest.mark.parametrize(
    'given, expected',
    [
        ({}, dict(type='mmorepa.SeededBatchSampler')),
        (dict(drop_last=True), dict(type='mmorepa.SeededBatchSampler', drop_last=True)),
        (
            dict(batch_sampler=dict(type='AspectRatioBatchSampler')),
            dict(
                type='mmorepa.SeededBatchSampler',
                batch_sampler=dict(type='AspectRatioBatchSampler'),
            ),
        ),
        (
            dict(batch_sampler=dict(type='SeededBatchSampler')),
            dict(type='SeededBatchSampler'),
        ),
    ],
)
def test_in_a_config(given, expected):
    cfg = Config(dict(train_dataloader=dict(batch_size=2, **given)))
    for _ in range(2):  # doing it twice changes nothing
        seed_samples(cfg)
        assert cfg.train_dataloader == dict(batch_size=2, batch_sampler=expected)


def test_seeding_draws_what_manual_seed_draws():
    seed_everything(3, 1)
    ours = torch.rand(4)
    torch.manual_seed(torch.initial_seed())
    assert torch.equal(torch.rand(4), ours)


def test_seeding_leaves_nothing_behind_for_devices_that_are_not_in_use():
    queued = len(torch.cuda._queued_calls)
    seed_everything(3, 1)
    assert len(torch.cuda._queued_calls) == queued
