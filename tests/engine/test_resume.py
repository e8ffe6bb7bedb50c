"""Which checkpoint a training goes on from."""

import os
import shutil

import pytest
import torch
from mmengine.config import Config

from mmorepa.engine.resume import find_latest_checkpoint, prepare_resume, why_torn
from mmorepa.errors import UserError


def write(folder, *names, seed=3, start=1_000_000_000):
    """Checkpoints, each a second younger than the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    for age, name in enumerate(names):
        checkpoint = dict(state_dict=dict(w=torch.rand(500)), meta=dict(seed=seed), message_hub={})
        torch.save(checkpoint, folder / name)
        os.utime(folder / name, (start + age, start + age))
    return folder


def tear(path, part=0.5):
    """Leave the beginning of a file, as a killed process does; its age stays."""
    age = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    os.utime(path, (age, age))


def config(folder, **fields):
    return Config(dict(work_dir=str(folder), **fields))


def found(cfg):
    path, torn = find_latest_checkpoint(cfg)
    return path and path.name, [file.name for file in torn]


class TestWhichIsLatest:
    @pytest.mark.parametrize('last', [None, '', 'epoch_10.pth', 'epoch_9.pth', 'gone/epoch_11.pth'])
    def test_by_age(self, tmp_path, last):
        """What ``last_checkpoint`` says may be out of date, torn or missing."""
        write(tmp_path, 'epoch_2.pth', 'epoch_9.pth', 'epoch_10.pth')
        if last is not None:
            (tmp_path / 'last_checkpoint').write_text(last)
        assert found(config(tmp_path)) == ('epoch_10.pth', [])

    def test_an_older_training_in_the_same_folder(self, tmp_path):
        write(tmp_path, 'epoch_9.pth', 'epoch_10.pth', 'epoch_1.pth', 'epoch_2.pth')
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
        assert found(config(tmp_path)) == ('epoch_2.pth', [])
        tear(tmp_path / 'epoch_2.pth')
        assert found(config(tmp_path)) == ('epoch_1.pth', ['epoch_2.pth'])

    def test_a_copied_folder(self, tmp_path):
        """Files are as old as the copy, in any order, and ``last_checkpoint`` names the source."""
        write(tmp_path, 'epoch_10.pth', 'epoch_2.pth', 'epoch_9.pth')
        (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_10.pth')
        assert found(config(tmp_path)) == ('epoch_10.pth', [])

    def test_files_of_one_age(self, tmp_path):
        for number in (9, 10, 2):
            write(tmp_path, f'iter_{number}.pth')
        assert found(config(tmp_path)) == ('iter_10.pth', [])

    def test_torn_ones_are_skipped(self, tmp_path):
        write(tmp_path, 'iter_100.pth', 'iter_200.pth', 'iter_300.pth', 'iter_400.pth')
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_300.pth'))
        for number in (300, 400):
            tear(tmp_path / f'iter_{number}.pth')
        assert found(config(tmp_path)) == ('iter_200.pth', ['iter_400.pth', 'iter_300.pth'])

    @pytest.mark.parametrize('names', [[], ['best_acc_epoch_3.pth', 'deploy.pth', 'epoch_x.pth']])
    def test_none(self, tmp_path, names):
        write(tmp_path, *names)
        assert found(config(tmp_path)) == (None, [])

    def test_no_folder(self, tmp_path):
        assert found(config(tmp_path / 'new')) == (None, [])

    def test_another_name_and_folder(self, tmp_path):
        hook = dict(filename_tmpl='step-{}.ckpt', out_dir=str(tmp_path / 'out'))
        write(tmp_path / 'work', 'epoch_7.pth')
        write(tmp_path / 'out' / 'work', 'step-1.ckpt', 'step-2.ckpt', 'epoch_5.pth')
        cfg = config(tmp_path / 'work', default_hooks=dict(checkpoint=hook))
        assert found(cfg) == ('step-2.ckpt', [])

    @pytest.mark.parametrize('template', ['epoch_{:03d}.pth', 'epoch_{0:03}.pth', None])
    def test_a_name_that_is_formatted(self, tmp_path, template):
        names = [(template or 'epoch_{}.pth').format(number) for number in (1, 2, 10)]
        write(tmp_path, *names)
        cfg = config(tmp_path, default_hooks=dict(checkpoint=dict(filename_tmpl=template)))
        assert found(cfg) == (names[-1], [])


class TestTorn:
    @pytest.fixture(scope='class')
    def whole(self, tmp_path_factory):
        return write(tmp_path_factory.mktemp('whole'), 'epoch_1.pth') / 'epoch_1.pth'

    def test_whole(self, whole):
        assert why_torn(whole) == ''

    @pytest.mark.parametrize('part', [0, 0.001, 0.1, 0.5, 0.9, 0.999])
    def test_wherever_it_ends(self, whole, tmp_path, part):
        path = shutil.copy(whole, tmp_path / 'a.pth')
        tear(path, part)
        assert why_torn(path)
        assert '\n' not in why_torn(path)

    def test_zeros_inside(self, whole, tmp_path):
        """A file system may keep a file's size and lose what was in it."""
        content = bytearray(whole.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(64)
        path = tmp_path / 'a.pth'
        path.write_bytes(content)
        assert 'checksum' in why_torn(path)

    def test_old_format(self, tmp_path):
        """It has no checksums; a torn one is told by the Runner, which cannot read it."""
        torch.save(dict(a=1), tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
        assert why_torn(tmp_path / 'a.pth') == ''


class TestConfig:
    def test_resumes_from_the_whole_one(self, tmp_path):
        write(tmp_path, 'epoch_1.pth', 'epoch_2.pth')
        tear(tmp_path / 'epoch_2.pth')
        cfg = config(tmp_path, load_from='pretrained.pth', randomness=dict(deterministic=True))
        (note,) = prepare_resume(cfg, True)
        assert note.startswith(f'{tmp_path}/epoch_2.pth is torn and skipped: ')
        assert cfg.resume is True
        assert cfg.load_from == str(tmp_path / 'epoch_1.pth')
        assert cfg.randomness == dict(deterministic=True, seed=3)

    def test_nothing_to_resume_from(self, tmp_path):
        """A job that restarts itself begins, from where the config says."""
        cfg = config(tmp_path, load_from='pretrained.pth')
        (note,) = prepare_resume(cfg, True)
        assert note == f'no whole checkpoint in {tmp_path}: training begins anew'
        assert not cfg.resume
        assert cfg.load_from == 'pretrained.pth'

    def test_another_seed(self, tmp_path):
        write(tmp_path, 'epoch_1.pth', seed=5)
        cfg = config(tmp_path, randomness=dict(seed=4))
        (note,) = prepare_resume(cfg, str(tmp_path / 'epoch_1.pth'))
        assert note == f'seed 5 of {tmp_path}/epoch_1.pth is used, not 4 of the config'
        assert cfg.randomness.seed == 5

    def test_a_checkpoint_without_a_seed(self, tmp_path):
        write(tmp_path, 'epoch_1.pth', seed=None)
        cfg = config(tmp_path, randomness=dict(seed=4))
        assert prepare_resume(cfg, True) == []
        assert cfg.randomness.seed == 4

    @pytest.mark.parametrize(
        'name, message',
        [('gone.pth', 'no checkpoint to resume from at'), ('epoch_1.pth', 'epoch_1.pth is torn: ')],
    )
    def test_a_path_that_cannot_be_resumed(self, tmp_path, name, message):
        tear(write(tmp_path, 'epoch_1.pth') / 'epoch_1.pth')
        with pytest.raises(UserError, match=message):
            prepare_resume(config(tmp_path), str(tmp_path / name))

    def test_weights_alone(self, tmp_path):
        torch.save(dict(w=torch.rand(5)), tmp_path / 'weights.pth')
        with pytest.raises(UserError, match='no checkpoint of a training, it has no'):
            prepare_resume(config(tmp_path), str(tmp_path / 'weights.pth'))
