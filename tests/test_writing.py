"""Files are written whole or not at all, and over nothing unasked."""

import errno
import json
import math
import multiprocessing
import os

import pytest

from mmorepa.errors import UserError
from mmorepa.writing import alone_in, check_folder, check_out, write_json, written_whole


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), written_whole(path) as temporary:
        temporary.write_text('new')
        raise KeyboardInterrupt
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.pth']


def test_permissions_are_those_of_a_new_file(tmp_path):
    with written_whole(tmp_path / 'a') as temporary:
        temporary.write_text('x')
    (tmp_path / 'b').write_text('x')
    assert (tmp_path / 'a').stat().st_mode == (tmp_path / 'b').stat().st_mode


@pytest.mark.parametrize(
    'name, message',
    [
        ('new.onnx', None),
        ('new.pt', 'new.pt is no name for a graph: wanted the ending .onnx'),
        ('input.onnx', 'input.onnx is what is to be exported: choose another name'),
        ('link.onnx', 'link.onnx is what is to be exported: choose another name'),
        ('there.onnx', 'there.onnx exists already: choose another name or pass --force'),
    ],
)
@pytest.mark.parametrize('force', [False, True])
def test_what_a_file_may_be_called(name, message, force, tmp_path):
    for existing in ('input.onnx', 'there.onnx'):
        (tmp_path / existing).touch()
    (tmp_path / 'link.onnx').symlink_to(tmp_path / 'input.onnx')
    inputs = [str(tmp_path / 'input.onnx'), None]

    def check():
        return check_out(tmp_path / name, inputs, force, '.onnx', 'a graph', 'exported')

    if message is None or (force and name == 'there.onnx'):
        assert check() == tmp_path / name
        return
    with pytest.raises(UserError, match=message) as raised:
        check()
    assert '\n' not in str(raised.value)


def test_a_pipe_stays(tmp_path):
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    with pytest.raises(UserError, match='pipe is a device or a pipe: wanted a file to write'):
        check_out(path, force=True)
    with pytest.raises(UserError, match='pipe is a device or a pipe'), written_whole(path):
        pass
    assert path.is_fifo()
    assert os.listdir(tmp_path) == ['pipe']


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'file').write_text('old')
    (tmp_path / 'link').symlink_to('folder/file')
    with written_whole(tmp_path / 'link') as temporary:
        temporary.write_text('new')
    assert (tmp_path / 'link').is_symlink()
    assert (tmp_path / 'folder' / 'file').read_text() == 'new'
    assert os.listdir(tmp_path / 'folder') == ['file']


def test_numbers_that_do_not_exist_are_null(tmp_path):
    content = dict(a=[1.5, math.nan], b=dict(c=(math.inf, 2)), d=None, e='text', f=True)
    write_json(content, tmp_path / 'sub' / 'a.json')
    found = json.loads((tmp_path / 'sub' / 'a.json').read_text())
    assert found == dict(a=[1.5, None], b=dict(c=[None, 2]), d=None, e='text', f=True)


class TestFolder:
    @pytest.mark.parametrize('name', ['.', 'new', 'new/below'])
    def test_there_or_not(self, name, tmp_path):
        assert check_folder(tmp_path / name) == tmp_path / name
        assert not (tmp_path / 'new').exists()

    @pytest.mark.parametrize('name', ['taken', 'taken/below', 'taken/below/that'])
    def test_a_file(self, name, tmp_path):
        (tmp_path / 'taken').write_text('precious')
        with pytest.raises(UserError, match='taken is a file: wanted a folder') as info:
            check_folder(tmp_path / name)
        assert '\n' not in str(info.value)

    def test_of_another(self, tmp_path, monkeypatch):
        monkeypatch.setattr('os.access', lambda path, mode: False)
        with pytest.raises(UserError, match='may not be written to'):
            check_folder(tmp_path / 'new')


@pytest.mark.parametrize(
    'error',
    [OSError(errno.ENOSPC, 'No space left on device'), OSError(errno.EFBIG, 'File too large')],
    ids=['disk', 'limit'],
)
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_full_disk_is_named(error, wrapped, tmp_path):
    path = tmp_path / 'a.pth'
    with pytest.raises(UserError, match=f'a.pth cannot be written: .* on the disk of {tmp_path}'):
        with written_whole(path):
            if wrapped:  # as a writer in C++ does
                raise RuntimeError('failed writing file') from error
            raise error
    assert not list(tmp_path.iterdir())


def test_other_errors_pass(tmp_path):
    with pytest.raises(RuntimeError, match='a bug'), written_whole(tmp_path / 'a.pth'):
        raise RuntimeError('a bug')


def hold(folder, holds, ends):
    with alone_in(folder):
        holds.set()
        ends.wait()


def test_one_process_alone_in_a_folder(tmp_path):
    """Until it ends; nothing is left behind."""
    context = multiprocessing.get_context('fork')
    holds, ends = context.Event(), context.Event()
    folder = tmp_path / 'work'
    other = context.Process(target=hold, args=(folder, holds, ends), daemon=True)
    other.start()
    assert holds.wait(60)
    with pytest.raises(UserError, match='work is where another training writes to: wait'):
        with alone_in(folder):
            pass
    ends.set()
    other.join()
    for _ in range(2):
        with alone_in(folder):
            pass
    assert not list(folder.iterdir())


@pytest.mark.parametrize('name', ['', '.', './'])
def test_a_file_has_a_name(name):
    with pytest.raises(UserError, match=r'^\. is a folder: wanted a file to write$'):
        check_out(name, force=True)
