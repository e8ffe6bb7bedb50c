"""The set-up's decisions: keys, who installs what, the order of wheels, and what a stamp saves."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
setup_env = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(setup_env)

TAG = f'cp{sys.version_info[0]}{sys.version_info[1]}'


def test_the_key_follows_contents_and_not_dates(tmp_path):
    lock = tmp_path / 'default.txt'
    lock.write_text('torch==2.14.1\n')
    key = setup_env.key(TAG, lock)
    os.utime(lock, (1, 1))
    assert setup_env.key(TAG, lock) == key
    lock.write_text('torch==2.14.0\n')
    assert len({key, setup_env.key(TAG, lock), setup_env.key('cp27', lock)}) == 3


@pytest.mark.parametrize(
    ('environ', 'stack', 'folder'),
    [
        ({}, 'default', r'ROOT/\.venv'),
        ({'CI': ''}, 'compiled', r'ROOT/\.venv-compiled'),
        ({'CI': 'true', 'XDG_CACHE_HOME': '/c'}, 'onedl', r'/c/mmorepa/env-onedl-\w{12}'),
    ],
)
def test_the_environment_outlives_the_checkout_in_ci(monkeypatch, environ, stack, folder):
    monkeypatch.delenv('CI', raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found = str(setup_env.Environment(stack).folder)
    assert re.fullmatch(folder.replace('ROOT', str(ROOT)), found)


def test_where_prints_the_folder_and_makes_nothing(tmp_path):
    command = [sys.executable, str(ROOT / 'tools' / 'setup_env.py'), '--where']
    environ = {**os.environ, 'CI': '1', 'XDG_CACHE_HOME': str(tmp_path)}
    said = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(rf'{tmp_path}/mmorepa/env-default-\w+\n', said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('stack', setup_env.STACKS)
def test_for_the_cpu_only_torch_changes_and_cuda_goes(stack):
    lock = (ROOT / 'requirements' / f'{stack}.txt').read_text()
    before = set(lock.splitlines())
    after = set(setup_env.for_the_cpu(lock).splitlines())
    added = {re.sub('==.*', '', line) for line in after - before}
    gone = {re.split('[-=]', line)[0] for line in before - after}
    assert added == {'torch', 'torchvision'}
    assert all(line.endswith('+cpu') for line in after - before)
    assert gone - {'cuda'} == {'torch', 'torchvision', 'nvidia', 'triton'}


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


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment of the default stack whose commands are only noted.

    Those with a text of ``fails`` in them fail.
    """
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: None)
    monkeypatch.setattr(setup_env.platform, 'machine', lambda: 'x86_64')
    environment = setup_env.Environment('default', tmp_path / 'env')
    environment.commands = []
    environment.fails = ['+cpu']

    def run(title, command, environ=None, may_fail=False):
        command = ' '.join(str(part) for part in command)
        environment.commands.append(command)
        environment.log.touch()
        if '-m venv' in command:
            for name in ('python', 'uv'):
                (environment.folder / 'bin').mkdir(exist_ok=True)
                (environment.folder / 'bin' / name).touch()
        fails = any(part in command for part in environment.fails)
        if fails and not may_fail:
            raise setup_env.SetupError(title)
        return not fails

    monkeypatch.setattr(environment, 'run', run)
    return environment


def commands_of(environment):
    environment.commands.clear()
    environment.set_up()
    return environment.commands


def test_the_second_time_does_nothing(environment):
    assert any('-m venv' in command for command in commands_of(environment))
    assert commands_of(environment) == []


def test_uv_installs_and_pip_only_where_uv_cannot(environment):
    said = [c for c in commands_of(environment) if '-r ' in c]
    assert len(said) == 1 and 'uv pip install --no-deps' in said[0]
    environment.write_stamp({})
    environment.fails.append('bin/uv')
    said = [c for c in commands_of(environment) if '-r ' in c]
    assert len(said) == 2 and '-m pip install --no-deps' in said[1]


@pytest.mark.parametrize('there', [True, False])
def test_the_cpu_build_of_torch_is_taken_where_there_is_one(environment, there):
    environment.fails = [] if there else ['+cpu']
    commands_of(environment)
    lock = (environment.folder / 'requirements.txt').read_text()
    assert ('torch==2.14.1+cpu\n' in lock) == there
    assert ('nvidia-cublas' in lock) == (not there)


def test_with_a_driver_no_cpu_build_is_looked_for(environment, monkeypatch):
    monkeypatch.setattr(setup_env.shutil, 'which', lambda name: f'/usr/bin/{name}')
    assert not any('+cpu' in command for command in commands_of(environment))


@pytest.mark.parametrize(('name', 'anew'), [('environment', True), ('project', False)])
def test_a_change_redoes_what_hangs_on_it(environment, monkeypatch, name, anew):
    environment.set_up()
    wanted = {**environment.wanted(), name: 'new'}
    monkeypatch.setattr(environment, 'wanted', lambda: wanted)
    commands = commands_of(environment)
    assert 'check_env.py' in commands[-1]
    assert any('-m venv' in command for command in commands) == anew
    assert commands_of(environment) == []


@pytest.mark.parametrize('step', ['-m venv', '-r ', '-e ', 'mmorepa.ops', 'check_env.py'])
def test_a_stop_leaves_no_stamp_that_says_done(environment, step):
    environment.fails.append(step)
    with pytest.raises(setup_env.SetupError):
        environment.set_up()
    environment.fails.remove(step)
    assert 'check_env.py' in commands_of(environment)[-1]


@pytest.mark.parametrize('damage', ['no python', 'no json'])
def test_a_damaged_environment_is_made_anew(environment, damage):
    environment.set_up()
    if damage == 'no python':
        environment.python.unlink()
    else:
        (environment.folder / setup_env.STAMP).write_text('{"environment":')
    assert '-m venv' in commands_of(environment)[0]


def test_an_environment_is_made_anew_by_its_own_python(tmp_path):
    folder = tmp_path / 'env'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(folder)], check=True)
    (folder / 'of_the_old').touch()
    code = (
        'import setup_env\n'
        f'environment = setup_env.Environment("default", setup_env.Path({str(folder)!r}))\n'
        'run = environment.run\n'
        'environment.run = lambda title, command, *rest, **more: (\n'
        '    not "venv" in command or run(title, command, *rest, **more)\n'
        ')\n'
        'environment.make()\n'
    )
    environ = {**os.environ, 'PYTHONPATH': str(ROOT / 'tools')}
    subprocess.run([str(folder / 'bin' / 'python'), '-c', code], env=environ, check=True)
    assert not (folder / 'of_the_old').exists()
    subprocess.run([str(folder / 'bin' / 'python'), '-c', 'import ssl'], check=True)


def test_another_checkout_is_another_project(environment, tmp_path, monkeypatch):
    before = environment.wanted()
    other = tmp_path / 'checkout'
    (other / 'mmorepa').mkdir(parents=True)
    for name in ('setup.py', 'pyproject.toml', 'mmorepa/version.py', 'mmorepa/environment.py'):
        shutil.copy(ROOT / name, other / name)
    monkeypatch.setattr(setup_env, 'ROOT', other)
    after = environment.wanted()
    assert before['environment'] == after['environment'] and before['project'] != after['project']


def test_a_folder_of_something_else_is_not_emptied(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(setup_env.SetupError, match='is not a virtual environment: empty it'):
        setup_env.Environment('default', tmp_path).clear()
    assert (tmp_path / 'thesis.tex').exists()


def test_a_failing_step_shows_the_end_of_what_it_said(tmp_path, capsys):
    environment = setup_env.Environment('default', tmp_path)
    code = 'print("first"); [print(i) for i in range(20)]; raise SystemExit("no such package")'
    command = [sys.executable, '-c', code]
    assert environment.run('trying', command, may_fail=True) is False
    with pytest.raises(setup_env.SetupError, match=r'trying failed \(exit code 1\)') as error:
        environment.run('trying', command)
    said = capsys.readouterr().out
    assert '| no such package' in said and 'first' not in said
    assert str(environment.log) in str(error.value)
    assert 'first' in environment.log.read_text()


@pytest.mark.parametrize('stack', setup_env.STACKS)
def test_a_python_that_will_not_do_gets_one_line(tmp_path, monkeypatch, stack):
    monkeypatch.setattr(setup_env.sys, 'version_info', (3, 99, 0))
    message = rf'^this is Python 3.*, and the stack {stack} is for 3\.1\d to 3\.1\d: install one'
    with pytest.raises(setup_env.SetupError, match=message) as error:
        setup_env.Environment(stack, tmp_path / 'env').set_up()
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'env').exists()


@pytest.fixture
def compiled(environment, tmp_path, monkeypatch):
    """An environment that wants a compiled mmcv, and two folders that may have one."""
    environment.lock = ROOT / 'requirements' / 'compiled.txt'
    environment.fails = []
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('MMOREPA_WHEELS', os.pathsep.join(f'{tmp_path}/{n}' for n in 'ba'))
    machine = platform.machine()
    names = {
        'b': [f'mmcv-2.1.0-{TAG}-{TAG}-linux_{machine}.whl', 'mmcv_lite-2.1.0-py3-none-any.whl'],
        'a': [f'mmcv-2.1.0-{TAG}-{TAG}-linux_{machine}.whl', f'mmcv-2.1.0-{TAG}-{TAG}-z80.whl'],
    }
    for folder, files in names.items():
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).touch()
    environment.folder.mkdir()
    return environment


@pytest.mark.parametrize(('fails', 'tried'), [([], 'b'), (['/b/mmcv'], 'ba')])
def test_a_wheel_that_fits_and_loads_is_taken(compiled, tmp_path, monkeypatch, fails, tried):
    def install_wheel(wheel):
        compiled.commands.append(wheel)
        return not any(part in str(wheel) for part in fails)

    monkeypatch.setattr(compiled, 'install_wheel', install_wheel)
    compiled.install_compiled_mmcv()
    name = f'mmcv-2.1.0-{TAG}-{TAG}-linux_{platform.machine()}.whl'
    assert compiled.commands == [tmp_path / folder / name for folder in tried]


def test_no_compiler_gets_one_line(compiled, monkeypatch):
    monkeypatch.setenv('MMOREPA_WHEELS', '')
    with pytest.raises(setup_env.SetupError, match=r'no C\+\+ compiler .*default stack$'):
        compiled.install_compiled_mmcv()
