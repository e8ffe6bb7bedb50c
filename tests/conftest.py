"""What tests of several folders share."""

import gc
import inspect
import json
import multiprocessing
from pathlib import Path

import pytest

# Before it is imported: assertions in it show their values, as those of test files do.
pytest.register_assert_rewrite('backbones.resnet_contract', 'support')

import torch  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from quick_configs import quicken  # noqa: E402

from command_server import Server  # noqa: E402
from mmorepa.checkpoints.models import build_model  # noqa: E402
from mmorepa.engine.run import load_config  # noqa: E402
from support import CONFIG, ROOT, make_trained_like  # noqa: E402

# What the commands do in processes of their own is done as for a user.
quicken()


#: Of two workers one would sit idle while the other is at the longest file, were that the last.
LONGEST = ('e2e/test_pretraining.py', 'docs/test_commands.py', 'comparison/test_study.py')


def pytest_collection_modifyitems(items):
    """Have the longest files come first."""
    names = [f'{item.path.parent.name}/{item.path.name}' for item in items]
    rank = {name: i for i, name in enumerate(LONGEST)}
    order = sorted(range(len(items)), key=lambda i: rank.get(names[i], len(LONGEST)))
    items[:] = [items[i] for i in order]


@pytest.fixture(autouse=True, scope='module')
def little_garbage():
    """Leave what is there before a file's tests out of what they collect as garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def server(tmp_path_factory):
    """Runs Python commands, each forked from a process that has imported the libraries."""
    server = Server(tmp_path_factory.mktemp('server'))
    yield server
    server.close()


@pytest.fixture(scope='session')
def run_forked(server):
    """Runs a Python command with the checkout, checks its exit code, gives what it printed."""

    def run(folder, *words, code=0):
        found, text = server.run(folder, *words, PYTHONPATH=str(ROOT))
        assert found == code, text
        return text

    return run


@pytest.fixture
def apart(run_forked, tmp_path):
    """Calls a function of a test file in a process that may fork: this one has threads.

    Its arguments and its result are what JSON has.
    """

    def call(function, *arguments):
        file = Path(inspect.getfile(function)).relative_to(ROOT / 'tests').with_suffix('')
        script = tmp_path / 'apart.py'
        script.write_text(
            'import json, sys\n'
            f'sys.path.insert(0, {str(ROOT / "tests")!r})\n'
            f'from {".".join(file.parts)} import {function.__name__} as function\n'
            f'print(json.dumps(function(*{arguments!r})))\n'
        )
        return json.loads(run_forked(tmp_path, script).splitlines()[-1])

    return call


@pytest.fixture(autouse=True)
def no_default_scope():
    """Forget the default scope, which MMEngine keeps for the process once a config has set it."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_process_left():
    """Refuse processes that a test leaves behind, such as the workers of a loader.

    Collecting a loader's iterator as garbage waits five seconds for each of its workers, in
    whatever test that happens: its queues are closed before it can tell them to end.
    """
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
        process.join()
    assert not left


#: Fields that make the digits model small; the code it runs is the same.
NARROW = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 64,
}


@pytest.fixture
def narrow_config():
    """Gives the config of a small OREPA ResNet-18 classifier, with fields changed."""

    def load(work_dir=None, **options):
        return load_config(CONFIG, work_dir, {**NARROW, **options})

    return load


@pytest.fixture
def training_checkpoint(tmp_path, narrow_config):
    """A checkpoint as training leaves it, optimizer state included, away from default values."""
    torch.manual_seed(0)
    model = make_trained_like(build_model(narrow_config()))
    path = tmp_path / 'epoch_3.pth'
    torch.save(
        dict(
            meta=dict(epoch=3, iter=69, dataset_meta=dict(classes=('0', '1'))),
            state_dict=model.state_dict(),
            optimizer=dict(state={0: torch.zeros(1000)}, param_groups=[]),
            message_hub=dict(),
        ),
        path,
    )
    return path
