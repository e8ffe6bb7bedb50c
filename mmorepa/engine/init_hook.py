"""Starting a library's own backbone from a checkpoint, with nothing dropped in silence."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..backbones.pretrained import load_pretrained
from .squeezed_step import unwrap


class InitHook(Hook):
    """Loads a whole checkpoint into the backbone before the first step.

    The backbones of this package read their ``init_cfg`` in this way by themselves. The libraries'
    own leave it to MMEngine, which loads what fits and only warns about the rest.

    Args:
        checkpoint (str): See :func:`mmorepa.backbones.pretrained.load_pretrained`.

    Raises:
        UserError: See there.
    """

    #: Before hooks that copy the weights, such as EMAHook.
    priority = 'HIGH'

    def __init__(self, checkpoint: str):
        self.checkpoint = checkpoint

    def before_train(self, runner: Runner) -> None:
        """Load it, unless the training was resumed."""
        if not runner.iter:
            load_pretrained(unwrap(runner.model).backbone, self.checkpoint)
