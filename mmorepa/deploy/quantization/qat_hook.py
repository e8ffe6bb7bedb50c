"""What quantization-aware training wants of MMEngine's Runner."""

from __future__ import annotations

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import disable_observer, enable_observer

from ...checkpoints import load_any_form
from ...checkpoints.models import build_model
from ...errors import UserError
from .qat import float_config, with_fake_quantization


@HOOKS.register_module()
class QATHook(Hook):
    """Starts quantization-aware training from a float checkpoint, and freezes it near the end.

    - The config's ``load_from`` may be a plain checkpoint (``convert.py --keep-bn``), or, if the
      config builds the blocks, a training checkpoint; its keys are brought into those of
      ``QATForm``.
    - From ``freeze_at`` on, observers no longer move the ranges of activations, and training
      batches no longer move the statistics of BatchNorms (Krishnamoorthi, 2018, sec. 3.2.2). The
      last steps then train what will run in int8.
    - Validation and test images do not move a range.

    Args:
        freeze_at (float): Share of the training after which ranges and statistics are frozen; 1
            never freezes. Defaults to 0.75.

    Raises:
        UserError: If ``freeze_at`` is not between 0 and 1.
    """

    # Before it is asked whether the checkpoint fits.
    priority = 'VERY_HIGH'

    def __init__(self, freeze_at: float = 0.75):
        if not 0 <= freeze_at <= 1:
            raise UserError(f'QATHook has freeze_at={freeze_at!r}: wanted a number from 0 to 1')
        self.freeze_at = freeze_at
        self.frozen = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Bring the state dict of a float checkpoint into the form of ``QATForm``.

        Raises:
            UserError: If it does not fit or is in deploy form.
        """
        if not any(key.endswith('fake_quant_enabled') for key in checkpoint['state_dict']):
            checkpoint['state_dict'] = qat_state_dict(runner.cfg, checkpoint['state_dict'])

    def before_train(self, runner: Runner) -> None:
        """Refuse to train from random weights.

        Raises:
            UserError: If nothing was loaded.
        """
        if not runner._has_loaded:
            raise UserError(
                'quantization-aware training starts from a trained network: '
                'give its plain checkpoint with --cfg-options load_from=FILE'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Freeze ranges and statistics when it is time, after resuming too."""
        if not self.frozen and runner.iter >= self.freeze_at * runner.max_iters:
            self.frozen = True
            runner.model.apply(disable_observer)
            runner.model.apply(freeze_bn_stats)
            print_log(
                f'QATHook: ranges and BatchNorm statistics are frozen from iteration {runner.iter}',
                logger='current',
            )

    def before_val(self, runner: Runner) -> None:
        """Hold the ranges."""
        runner.model.apply(disable_observer)

    def after_val(self, runner: Runner) -> None:
        """Let training move the ranges again, unless they are frozen."""
        if not self.frozen:
            runner.model.apply(enable_observer)

    def before_test(self, runner: Runner) -> None:
        """Hold the ranges."""
        runner.model.apply(disable_observer)


def qat_state_dict(cfg: Config, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of ``QATForm`` at the start, from that of a float checkpoint.

    Args:
        cfg (Config): A config with ``QATForm``.
        state_dict (dict[str, Tensor]): The plain form, or the training form if the config builds
            blocks.

    Raises:
        UserError: If it does not fit or is in deploy form.
    """
    model = build_model(float_config(cfg))
    try:
        form = load_any_form(model, state_dict, 'load_from')
    except UserError as error:
        raise UserError(
            f'{error}; wanted the plain form, as tools/convert.py --keep-bn writes it'
        ) from None
    if form == 'deploy':
        raise UserError(
            'load_from is in deploy form, its BatchNorms are folded: '
            'wanted the plain form, as tools/convert.py --keep-bn writes it'
        )
    return dict(with_fake_quantization(model).state_dict())
