"""Finding the checkpoint to resume from, after training was stopped at any moment.

MMEngine writes a checkpoint to its final name and then that name to the file ``last_checkpoint``. A
process that is killed in between leaves a torn checkpoint, or a ``last_checkpoint`` that is out of
date or empty.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mmengine.config import Config

from ..checkpoints import load_checkpoint
from ..checkpoints.foreign import foreign
from ..errors import UserError, first_line

#: The file in which MMEngine notes the checkpoint that it wrote last.
LAST = 'last_checkpoint'
#: What MMEngine reads of a checkpoint to resume from.
OF_A_TRAINING = ('meta', 'message_hub')


def prepare_resume(cfg: Config, resume: bool | str) -> list[str]:
    """Change a config so that MMEngine's Runner resumes a training.

    This sets ``resume``, ``load_from`` and the checkpoint's seed. The seed is set here because
    MMEngine reads it only after the order of the data has been drawn.

    Args:
        cfg (Config): Changed in place.
        resume (bool | str): A path resumes from that file. True resumes from the newest whole
            checkpoint of the work dir; if there is none, training begins, from ``load_from`` if
            the config has it.

    Returns:
        list[str]: Messages for the user, one line each.

    Raises:
        UserError: If there is no file at the path, it is torn, or it is no checkpoint of a
            training.
    """
    notes = []
    if resume is True:
        path, torn = find_latest_checkpoint(cfg)
        notes += [f'{file} is torn and skipped: {reason}' for file, reason in torn.items()]
        if path is None:
            cfg.resume = False
            return [*notes, f'no whole checkpoint in {cfg.work_dir}: training begins anew']
    else:
        path = Path(resume)
        if not path.exists():
            raise UserError(f'no checkpoint to resume from at {path}: check the path')
        reason = why_torn(path)
        if reason:
            raise UserError(f'{path} is torn: {reason}; resume from another one')
    cfg.resume = True
    cfg.load_from = str(path)
    return notes + _take_seed(cfg, path)


def find_latest_checkpoint(cfg: Config) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint of a config's training.

    Checkpoints are tried in this order: those that were written after the one that
    ``last_checkpoint`` names and have a higher number, that one itself, and the rest by age. So
    neither an older training in the same folder misleads, nor a copied folder, in which all files
    have the same age.

    Args:
        cfg (Config): With ``work_dir``; ``default_hooks.checkpoint`` may have another
            ``out_dir`` and ``filename_tmpl``.

    Returns:
        tuple: The file, or None if there is none; and for each newer torn file, what is wrong with
        it.
    """
    hook = cfg.get('default_hooks', {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    # The folder that MMEngine's hook uses.
    folder = Path(hook['out_dir'], work_dir.resolve().name) if hook.get('out_dir') else work_dir
    template = hook.get('filename_tmpl')
    templates = [template] if template else ['epoch_{}.pth', 'iter_{}.pth']
    numbers = _numbers(folder, templates)
    files = sorted(numbers, key=lambda file: (file.stat().st_mtime_ns, numbers[file]), reverse=True)
    last = _named_last(work_dir, files)
    if last is not None:
        newer = [file for file in files[: files.index(last)] if numbers[file] > numbers[last]]
        files = [*newer, last, *(file for file in files if file not in (*newer, last))]
    torn = {}
    for file in files:
        reason = why_torn(file)
        if not reason:
            return file, torn
        torn[file] = reason
    return None, torn


def why_torn(path: Path) -> str:
    """Why a checkpoint file is torn, that is, not written to the end; empty if it is whole.

    Every checksum in the file is compared, see :func:`mmorepa.checkpoints.foreign.foreign`. Nothing
    is unpickled. DeepSpeed's folders and files written by torch before 1.6 have no checksums.
    """
    try:
        return '' if path.is_dir() else foreign(path.read_bytes()).partition(';')[0]
    except OSError as error:
        return first_line(error)


def _numbers(folder: Path, templates: list[str]) -> dict[Path, int]:
    """The checkpoints in a folder, with the epoch or iteration in their names."""
    numbers = {}
    for template in templates:
        # MMEngine formats it, so that it may be epoch_{:03d}.pth as well.
        around = map(re.escape, re.split(r'\{[^{}]*\}', template, maxsplit=1))
        pattern = re.compile('([0-9]+)'.join(around))
        for file in folder.glob('*') if folder.is_dir() else ():
            match = pattern.fullmatch(file.name)
            if match:
                numbers[file] = int(match[1])
    return numbers


def _named_last(work_dir: Path, files: list[Path]) -> Path | None:
    """The file that ``last_checkpoint`` names, even if the folder was moved since."""
    try:
        name = (work_dir / LAST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return next((file for file in files if file.name == os.path.basename(name)), None)


def _take_seed(cfg: Config, path: Path) -> list[str]:
    randomness = dict(cfg.get('randomness') or {})
    try:
        checkpoint = load_checkpoint(path)
    except UserError as error:
        if randomness.get('seed') is not None:
            return []
        return [f'the data comes in another order than before: {error}']
    missing = [part for part in OF_A_TRAINING if part not in checkpoint]
    if missing:
        raise UserError(
            f'{path} is no checkpoint of a training, it has no {missing[0]}: resume from another '
            'one, or start from its weights with --cfg-options load_from=FILE'
        )
    seed = checkpoint['meta'].get('seed')
    if seed is None or seed == randomness.get('seed'):
        return []
    cfg.randomness = dict(randomness, seed=seed)
    given = randomness.get('seed')
    return [] if given is None else [f'seed {seed} of {path} is used, not {given} of the config']
