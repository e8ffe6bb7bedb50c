"""Initialising a backbone from a checkpoint, with nothing dropped in silence.

MMEngine's ``init_cfg=dict(type='Pretrained', ...)`` loads what fits and goes on without the rest.
In a re-parameterised backbone the rest would be branches at random values: an error here.
"""

from __future__ import annotations

from mmengine import fileio
from mmengine.logging import print_log
from torch import nn

from ..checkpoints.files import load_checkpoint
from ..checkpoints.forms import refuse_non_finite
from ..checkpoints.state_dict import misfit
from ..errors import UserError


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None) -> None:
    """Load a checkpoint into a backbone, all of it, and log what was loaded.

    Args:
        backbone (nn.Module): Gets the tensors.
        checkpoint (str): A path or URL, as MMEngine takes it.
        prefix (str, optional): What the backbone's keys begin with in the checkpoint, such as
            ``'backbone.'``.

    Raises:
        UserError: If there is no such file, it cannot be read, no key has the prefix, keys or
            shapes differ, or weights are not finite; names the first missing and the first
            unexpected key.
    """
    if '://' not in str(checkpoint) and not fileio.exists(checkpoint):
        raise UserError(
            f'no pretraining checkpoint at {checkpoint}: pretrain first, or name another with '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE'
        )
    prefix = f'{prefix.rstrip(".")}.' if prefix else ''
    state_dict = {
        key.removeprefix(prefix): value
        for key, value in load_checkpoint(checkpoint)['state_dict'].items()
        if key.startswith(prefix)
    }
    if not state_dict:
        raise UserError(
            f'{checkpoint} has no key that begins with {prefix}: wanted a checkpoint with that '
            'backbone, or another prefix in init_cfg'
        )
    difference = misfit(backbone.state_dict(), state_dict)
    if difference:
        raise UserError(
            f'{checkpoint} does not fit {type(backbone).__name__}: {difference}; wanted the '
            'same network in the form that the config builds'
        )
    backbone.load_state_dict(state_dict)
    refuse_non_finite(backbone, checkpoint)
    print_log(f'loaded all {len(state_dict)} tensors of {checkpoint}', logger='current')
