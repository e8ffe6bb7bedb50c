"""The set-up's decisions: keys, the order of wheels, progress, and what a stamp saves."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
setup_env = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup_env)


@pytest.fixture
def requirements(tmp_path):
    folder = tmp_path / 'requirements'
    folder.mkdir()
    (folder / 'torch.txt').write_text('torch==2.5.1\ntorchvision==0.20.1\n')
    (folder / 'more.txt').write_text('mmcv==2.1.0  # said why\nmmcv-not==9\n')
    return folder


def test_the_key_follows_contents_and_names(requirements):
    key = setup_env.environment_key(requirements)
    (requirements / 'torch.txt').write_text('torch==2.5.1\ntorchvision==0.20.0\n')
    changed = setup_env.environment_key(requirements)
    (requirements / 'torch.txt').rename(requirements / 'torch2.txt')
    assert len({key, changed, setup_env.environment_key(requirements)}) == 3


def test_the_key_ignores_dates(requirements):
    key = setup_env.environment_key(requirements)
    os.utime(requirements / 'torch.txt', (1, 1))
    assert setup_env.environment_key(requirements) == key


def test_pinned_reads_the_line_of_that_package(requirements):
    assert setup_env.pinned(requirements, 'mmcv') == '2.1.0'
    with pytest.raises(setup_env.SetupError, match='no file in .* pins mmdet: add a line'):
        setup_env.pinned(requirements, 'mmdet')


@pytest.mark.parametrize(
    ('environ', 'folder'),
    [
        ({'HOME': '/h'}, 'ROOT/.venv'),
        ({'CI': '', 'HOME': '/h'}, 'ROOT/.venv'),
        ({'CI': 'true', 'XDG_CACHE_HOME': '/c'}, '/c/mmorepa/env-KEY'),
    ],
)
def test_the_environment_outlives_the_checkout_in_ci(requirements, environ, folder):
    root = requirements.parent
    key = setup_env.environment_key(requirements)
    wanted = folder.replace('ROOT', str(root)).replace('KEY', key)
    assert setup_env.environment_folder(root, environ) == Path(wanted)


TAG = f'cp{sys.version_info[0]}{sys.version_info[1]}'


@pytest.mark.parametrize(
    ('environ', 'folders'),
    [
        ({}, ['/side/shared/wheels/torch2.5']),
        ({'MMOREPA_WHEELS': ''}, []),
        ({'MMOREPA_WHEELS': f'/a{os.pathsep}/b'}, ['/a', '/b']),
    ],
)
def test_wheels_are_looked_for_in_order_and_in_the_cache_last(environ, folders):
    environ = {**environ, 'XDG_CACHE_HOME': '/c'}
    found = setup_env.wheel_folders(Path('/side/checkout'), environ, '2.5.1')
    assert [str(f) for f in found] == [*folders, f'/c/mmorepa/wheels/torch2.5.1-{TAG}']


def test_only_wheels_that_fit_are_taken(tmp_path):
    machine = platform.machine()
    fits = f'mmcv-2.1.0-{TAG}-{TAG}-linux_{machine}.whl'
    names = {
        'b': [fits, f'mmcv-2.2.0-{TAG}-{TAG}-linux_{machine}.whl'],
        'a': [fits, f'mmcv-2.1.0-cp27-cp27m-linux_{machine}.whl'],
        'c': [f'mmcv-2.1.0-{TAG}-{TAG}-linux_z80.whl', f'mmcv_lite-2.1.0-{TAG}-none-any.whl'],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).touch()
    folders = [tmp_path / name for name in ('b', 'missing', 'a', 'c')]
    found = setup_env.find_wheels(folders, '2.1.0')
    assert found == [tmp_path / 'b' / fits, tmp_path / 'a' / fits]


@pytest.mark.parametrize(
    ('output', 'step'),
    [
        ('', ''),
        ('Collecting mmcv\n', ''),
        (
            '  [1/130] c++ -MMD -c nms.cpp\n  [12/130] c++ -c roi[3/4].cpp\n  warning: x\n',
            '[12/130]',
        ),
        ('...cut in a line [7/130] c++\n', ''),
    ],
)
def test_ninja_step_is_the_last_one(output, step):
    assert setup_env.ninja_step(output) == step


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment whose steps only note that they were taken."""
    environment = setup_env.Environment(tmp_path / 'env')
    environment.steps = []

    def make():
        environment.steps.append('make')
        environment.python.parent.mkdir(parents=True, exist_ok=True)
        environment.python.touch()

    monkeypatch.setattr(environment, 'make', make)
    monkeypatch.setattr(environment, 'install_project', lambda: environment.steps.append('project'))
    monkeypatch.setattr(environment, 'check', lambda: environment.steps.append('check'))
    monkeypatch.setattr(setup_env, 'check_python', lambda: None)
    monkeypatch.setattr(setup_env, 'environment_key', lambda folder: 'e1')
    monkeypatch.setattr(setup_env, 'project_key', lambda root: 'p1')
    return environment


def steps_of(environment):
    environment.steps.clear()
    setup_env.set_up(environment)
    return environment.steps


def test_the_second_time_does_nothing(environment):
    assert steps_of(environment) == ['make', 'project', 'check']
    assert steps_of(environment) == []


@pytest.mark.parametrize(
    ('name', 'steps'),
    [('environment_key', ['make', 'project', 'check']), ('project_key', ['project', 'check'])],
)
def test_a_change_redoes_what_hangs_on_it(environment, monkeypatch, name, steps):
    setup_env.set_up(environment)
    monkeypatch.setattr(setup_env, name, lambda folder: 'new')
    assert steps_of(environment) == steps
    assert steps_of(environment) == []


@pytest.mark.parametrize('step', ['make', 'install_project', 'check'])
def test_a_stop_leaves_no_stamp_that_says_done(environment, monkeypatch, step):
    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, step, stop)
        with pytest.raises(KeyboardInterrupt):
            setup_env.set_up(environment)
    assert 'check' in steps_of(environment)


@pytest.mark.parametrize('damage', ['no python', 'no json'])
def test_a_damaged_environment_is_made_anew(environment, damage):
    setup_env.set_up(environment)
    if damage == 'no python':
        environment.python.unlink()
    else:
        (environment.folder / setup_env.STAMP).write_text('{"environment":')
    assert steps_of(environment)[0] == 'make'


def test_another_checkout_has_another_project_key(tmp_path):
    keys = set()
    for name in ('one', 'two'):
        for file in ('setup.py', 'pyproject.toml', 'mmorepa/version.py', 'mmorepa/environment.py'):
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        keys.add(setup_env.project_key(tmp_path / name))
    assert len(keys) == 2


def test_a_folder_of_something_else_is_not_emptied(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(setup_env.SetupError, match='is not a virtual environment: empty it'):
        setup_env.Environment(tmp_path).clear()
    assert (tmp_path / 'thesis.tex').exists()


def test_a_failing_step_shows_the_end_of_what_it_said(tmp_path, capsys):
    environment = setup_env.Environment(tmp_path)
    code = 'print("first"); [print(i) for i in range(20)]; raise SystemExit("no such package")'
    with pytest.raises(setup_env.SetupError, match=r'trying failed \(exit code 1\)') as error:
        environment.run('trying', [sys.executable, '-c', code])
    said = capsys.readouterr().out
    assert '| no such package' in said and 'first' not in said
    assert str(environment.log) in str(error.value)
    assert 'first' in environment.log.read_text()


@pytest.mark.parametrize(
    ('patch', 'message'),
    [
        ({'PYTHON': (3, 99)}, r'^this is Python 3\.\d+\.\d+, and the pinned stack is for 3\.99: '),
        ({}, r'lacks the module ensurepip: install it \(Debian: apt-get install python'),
    ],
)
def test_a_python_that_will_not_do_gets_one_line(monkeypatch, patch, message):
    monkeypatch.setattr(setup_env, 'PYTHON', patch.get('PYTHON', sys.version_info[:2]))
    find = setup_env.importlib.util.find_spec
    monkeypatch.setattr(
        setup_env.importlib.util, 'find_spec', lambda name: name != 'ensurepip' and find(name)
    )
    with pytest.raises(setup_env.SetupError, match=message) as error:
        setup_env.check_python()
    assert '\n' not in str(error.value)


def test_no_compiler_gets_one_line(monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler -O2')
    with pytest.raises(setup_env.SetupError, match=r'no C\+\+ compiler .*MMOREPA_WHEELS$'):
        setup_env.check_compiler()


def test_where_prints_the_folder_and_makes_nothing(tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / 'setup_env.py'), '--where']
    environ = {**os.environ, 'CI': '1', 'XDG_CACHE_HOME': str(tmp_path)}
    said = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    key = setup_env.environment_key(ROOT / 'requirements')
    assert said == f'{tmp_path}/mmorepa/env-{key}\n'
    assert list(tmp_path.iterdir()) == []
