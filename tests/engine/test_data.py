"""The images of a data loader, as the network takes them."""

import re
from types import SimpleNamespace

import mmcv
import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmorepa.engine.data import build_loader, image_batches, innermost, naming_broken_images
from mmorepa.errors import UserError

#: A preprocessor that does nothing.
MODEL = SimpleNamespace(data_preprocessor=lambda data, training: data)


@pytest.mark.parametrize(
    'count, sizes',
    [(1, [1]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (100, [4, 4, 2]), (None, [4, 4, 2])],
)
def test_as_many_images_as_asked_for(count, sizes):
    loader = [dict(inputs=torch.full((n, 3, 2, 2), n, dtype=torch.uint8)) for n in (4, 4, 2)]
    batches = list(image_batches(loader, MODEL, *([] if count is None else [count])))
    assert [len(batch) for batch in batches] == sizes
    assert all(batch.dtype == torch.float32 for batch in batches)


def test_datasets_inside_of_others():
    inside = [dict(type='A'), dict(type='B')]
    dataset = ConfigDict(
        dataset=dict(datasets=[inside[0], dict(type='RepeatDataset', dataset=inside[1])])
    )
    assert list(innermost(dataset)) == inside
    assert list(innermost(ConfigDict(type='A'))) == [dict(type='A')]


def test_what_a_config_lacks(tmp_path):
    (tmp_path / 'some.py').write_text('test_dataloader = None')
    cfg = Config.fromfile(tmp_path / 'some.py')
    with pytest.raises(UserError, match='some.py has no test_dataloader: wanted one'):
        build_loader(cfg, 'test_dataloader', num_workers=0)


def test_a_data_set_that_does_not_build_is_one_line(tmp_path):
    # Its reader raises a RuntimeError where files are missing.
    dataset = dict(type='mmpretrain.FashionMNIST', data_root='nowhere', download=False)
    (tmp_path / 'some.py').write_text(
        f'test_dataloader = dict(batch_size=1, num_workers=0, dataset={dataset})'
    )
    cfg = Config.fromfile(tmp_path / 'some.py')
    message = '^.*some.py does not build: RuntimeError: Cannot find FashionMNIST dataset in nowhere'
    with pytest.raises(UserError, match=message):
        build_loader(cfg, 'test_dataloader')


class Empty(torch.utils.data.Dataset):
    """One image, whose file is empty."""

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return mmcv.imfrombytes(b'')


def said_of_an_empty_image(workers):
    loader = torch.utils.data.DataLoader(Empty(), num_workers=workers)
    with pytest.raises(UserError) as info, naming_broken_images():
        next(iter(loader))
    return str(info.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_an_empty_image_is_one_line(apart, workers):
    said = apart(said_of_an_empty_image, workers)
    assert re.fullmatch('an image of the data is empty or .*size 0', said)
