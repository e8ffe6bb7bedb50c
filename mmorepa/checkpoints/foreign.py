"""Telling what a file is that is no PyTorch checkpoint, by how it begins and what is in it."""

from __future__ import annotations

import io
import re
import zipfile
import zlib

import torch

from .claims import false_claim
from .state_dict import one_line

#: What is said of a graph, and what to do.
EXPORTED = 'an exported or int8 model; give the checkpoint that it was made from'
_DOWNLOAD = 'the download went wrong, fetch the file itself'

#: How files begin, what they are, and what to do about it.
_BEGINNINGS = (
    (rb'version https://git-lfs\.', 'a Git LFS pointer', 'run `git lfs pull` where it is from'),
    (rb'(?i)\s*<(!doctype|html|head|body)', 'a web page', _DOWNLOAD),
    (rb'\s*<(\?xml|Error)', 'an XML text', _DOWNLOAD),
    (rb'(?s).{8}\{\s*"', 'a safetensors file', 'let its name end in .safetensors'),
    (rb'\x89HDF\r\n\x1a\n', 'an HDF5 file', ''),
    (rb'\x1f\x8b', 'a gzip file', 'unpack it'),
    (rb'BZh', 'a bzip2 file', 'unpack it'),
    (rb'\xfd7zXZ\0', 'an xz file', 'unpack it'),
    (rb'7z\xbc\xaf\x27\x1c', 'a 7z archive', 'unpack it'),
    (rb'Rar!', 'a rar archive', 'unpack it'),
    (rb'\x93NUMPY', 'a NumPy array', ''),
    (rb'GGUF', 'a GGUF file', ''),
    (rb'(?s).{257}ustar', 'a tar archive', 'unpack it; what torch before 0.2 wrote is not read'),
)


def foreign(content: bytes) -> str:
    """What a file is if it is anything but a whole PyTorch checkpoint, in words.

    torch would stumble over these files, or worse: the pinned torch runs the code of a TorchScript
    archive even if it is asked for weights alone, and it unpacks what was compressed to any size.

    Args:
        content (bytes): All of the file.

    Returns:
        str: What the file is, and behind a semicolon perhaps what to do. Empty if it may be a
        checkpoint.
    """
    if not content:
        return 'an empty file'
    for beginning, kind, advice in _BEGINNINGS:
        if re.match(beginning, content):
            return f'{kind}; {advice}' if advice else kind
    if content.startswith(b'PK'):
        return _foreign_zip(content)
    if _is_text(content[:1024]):
        return 'a text file'
    return ''


def _foreign_zip(content: bytes) -> str:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        sizes = {info.filename.partition('/')[2]: info.file_size for info in archive.infolist()}
        if 'data.pkl' not in sizes and 'constants.pkl' not in sizes:
            return 'a zip archive of something else'
        # torch's own reader, so that it cannot see what is not seen here.
        names = torch._C.PyTorchFileReader(io.BytesIO(content)).get_all_records()
    except Exception:  # torn, in one of many ways
        return 'a zip archive that is torn; fetch it anew'
    if 'constants.pkl' in names:
        return f'a TorchScript archive, {EXPORTED}'
    size = sum(sizes.values())
    if size > len(content):
        return f'an archive that unpacks to {size} bytes from {len(content)}; torch compresses none'
    for info in archive.infolist():
        # torch can be told to leave checksums out; they are zero then.
        if info.CRC and not _is_whole(archive, info):
            return f'damaged, the checksum of {one_line(info.filename)} does not fit; fetch it anew'
    pickles = [info for info in archive.infolist() if info.filename.endswith('/data.pkl')]
    try:
        claim = false_claim(archive.read(pickles[0]), sizes)
    except Exception as error:  # no pickle, or one that is torn
        return f'damaged in data.pkl ({one_line(error)})'
    return f'damaged in {one_line(claim)}' if claim else ''


def _is_whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
    try:
        return zlib.crc32(archive.read(info)) == info.CRC
    except Exception:  # of zipfile, zlib and others
        return False


def _is_text(content: bytes) -> bool:
    return not re.search(rb'[^\t\n\r\x1b -~\x80-\xff]', content) and content[:1] != b'\x80'
