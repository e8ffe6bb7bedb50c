"""SIGKILL at any moment: the newest whole checkpoint is gone on from, a torn one is named."""

import os
import signal

import pytest
from mmengine.fileio import LocalBackend

from faults.common import differing, in_processes, load
from mmorepa.engine.run import train
from mmorepa.engine.seeding import IterSeedHook


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def train_and_die(rank, cfg, part):
    """Train, and be killed when so much of the second checkpoint is written."""
    put, calls = LocalBackend.put, []

    def torn(self, content, path):
        calls.append(path)
        if len(calls) == 2:
            put(self, content[: int(part * len(content))], path)
            die()
        put(self, content, path)

    LocalBackend.put = torn
    train(cfg)


def train_to(rank, cfg, iteration):
    """Train, and be killed before an iteration."""
    seed = IterSeedHook.before_train_iter

    def dying(self, runner, *args, **kwargs):
        if runner.iter == iteration:
            die()
        seed(self, runner, *args, **kwargs)

    IterSeedHook.before_train_iter = dying
    train(cfg)


@pytest.fixture(scope='module')
def whole(config, iter_based, tmp_path_factory):
    """The last checkpoints of trainings that nobody killed."""
    folder = tmp_path_factory.mktemp('whole')
    train(config(folder, epochs=3))
    train(config(folder, **iter_based))
    return {name: load(folder / name) for name in ('epoch_3.pth', 'iter_4.pth')}


def go_on(cfg, capfd):
    """Resume, and give the lines about torn files."""
    cfg.log_level = 'WARNING'
    cfg.resume = True
    train(cfg)
    lines = capfd.readouterr()
    return [line for line in (lines.out + lines.err).splitlines() if 'torn' in line]


@pytest.mark.parametrize('part', [0.0, 0.6, 1.0], ids=['empty', 'half written', 'not yet noted'])
def test_while_a_checkpoint_is_written(config, whole, tmp_path, capfd, part):
    assert in_processes(train_and_die, config(tmp_path, epochs=3), part) == [-signal.SIGKILL]
    # MMEngine's own note of what to resume from is out of date.
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    lines = go_on(config(tmp_path, epochs=3), capfd)
    assert len(lines) == (part < 1)
    assert all(f'{tmp_path}/epoch_2.pth is torn and skipped: ' in line for line in lines)
    assert differing(whole['epoch_3.pth'], load(tmp_path / 'epoch_3.pth')) == []


def test_within_an_epoch(config, whole, tmp_path, capfd):
    assert in_processes(train_to, config(tmp_path, epochs=3), 5) == [-signal.SIGKILL]
    assert go_on(config(tmp_path, epochs=3), capfd) == []
    assert differing(whole['epoch_3.pth'], load(tmp_path / 'epoch_3.pth')) == []


def test_iterations(config, iter_based, whole, tmp_path, capfd):
    assert in_processes(train_and_die, config(tmp_path, **iter_based), 0.6) == [-signal.SIGKILL]
    (line,) = go_on(config(tmp_path, **iter_based), capfd)
    assert f'{tmp_path}/iter_4.pth is torn and skipped: ' in line
    assert differing(whole['iter_4.pth'], load(tmp_path / 'iter_4.pth')) == []


def test_before_the_first_checkpoint(config, whole, tmp_path, capfd):
    """A job that always starts with --resume."""
    assert in_processes(train_to, config(tmp_path, epochs=3), 2) == [-signal.SIGKILL]
    assert go_on(config(tmp_path, epochs=3), capfd) == []
    assert differing(whole['epoch_3.pth'], load(tmp_path / 'epoch_3.pth')) == []
