"""The mixin that re-parameterised backbones of all OpenMMLab libraries share."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping

from torch import nn

from ..config_types import PRETRAINED, is_of_type
from ..convs import ReparamConv2d, switch_to_deploy
from ..convs.blocks.table import BLOCKS
from ..convs.convert.reparameterize import PassedOver, matcher, substitute
from ..convs.generated import holding_weights
from ..errors import UserError
from .pretrained import load_pretrained


class ReparamMixin:
    """Turns a plain backbone into a re-parameterised one. It goes before the backbone in the bases.

    The other base builds its network. Then the plain convolutions that :meth:`is_reparameterized`
    names are replaced by blocks. A block with BatchNorms inside also replaces the BatchNorm behind
    the convolution.

    Args:
        args: Arguments of the other base.
        reparam (str | dict, optional): A name of :data:`mmorepa.convs.blocks.table.BLOCKS`, or a
            dict with it under ``type`` and the block's options beside it, or None for the plain
            network. In a dict ``where`` says which convolutions to replace, as for
            :func:`mmorepa.reparameterize`. Defaults to ``'OREPA'``.
        deploy (bool): Build the deploy form, one convolution with bias for each block, to load a
            converted checkpoint. Defaults to False.
        kwargs: Keyword arguments of the other base.

    Raises:
        UserError: If ``reparam`` is not known, or the network has no plain convolution to
            replace because ``conv_cfg`` made them something else.
    """

    def __init__(self, *args, reparam: str | dict | None = 'OREPA', deploy=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.reparam = reparam
        if reparam is not None:
            self._reparameterize(reparam)
        if deploy:
            self.switch_to_deploy()
        self._freeze_stages()

    def is_reparameterized(self, name: str) -> bool:
        """Whether a block may replace the convolution with this dotted name."""
        raise NotImplementedError

    def block_options(self, options: dict) -> dict:
        """The block, ``type`` and options, that a dict given as ``reparam`` stands for here."""
        return options

    def _reparameterize(self, reparam: str | dict) -> None:
        options = dict(reparam) if isinstance(reparam, Mapping) else dict(type=str(reparam))
        matches = matcher(options.pop('where', None))
        options = self.block_options(options)
        if options.get('type') not in BLOCKS:
            raise UserError(
                f'{type(self).__name__}: reparam={reparam!r} is not known; '
                f'choose {", ".join(map(repr, BLOCKS))} or None'
            )

        def is_chosen(name: str, conv: nn.Conv2d) -> bool:
            return self.is_reparameterized(name) and matches(name, conv)

        passed = PassedOver()
        if not substitute(self, options, is_chosen, passed=passed):
            raise UserError(
                f'{type(self).__name__}: reparam={reparam!r} found no plain convolution to '
                f'replace; leave conv_cfg at None instead of {self.conv_cfg}, use BatchNorms, and '
                f"let 'where' name some{passed.in_words()}"
            )

    def init_weights(self) -> None:
        """Initialise as the other base does, but require that a pretrained checkpoint fits.

        Raises:
            UserError: See :func:`mmorepa.backbones.pretrained.load_pretrained`.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in configs if cfg and is_of_type(cfg, *PRETRAINED)]
        if not pretrained:
            super().init_weights()
            return
        load_pretrained(self, pretrained[-1]['checkpoint'], pretrained[-1].get('prefix'))

    @property
    def deploy(self) -> bool:
        """Whether this backbone is in deploy form."""
        convs = (m for m in self.modules() if isinstance(m, nn.Conv2d))
        # The networks build their convolutions without a bias; folding a BatchNorm adds one.
        return all(type(c) is nn.Conv2d and c.bias is not None for c in convs)

    def train(self, mode: bool = True) -> nn.Module:
        """Like ``nn.Module.train``. The libraries' own methods do not return the module."""
        # MMEngine's iteration-based loop calls train() in every step, and frozen stages then go to
        # training mode and back. This is no reason to generate their kernels again. A change
        # between training and evaluation is one: MMEngine's EMA swap, which nothing else reveals,
        # happens there.
        steady = mode and self.training
        with holding_weights(self) if steady else contextlib.nullcontext():
            super().train(mode)
            # The libraries set only the norm of a frozen stem to eval mode. A block may have taken
            # it in, and holds its kernel in this mode alone.
            if self.frozen_stages >= 0:
                for block in self.modules():
                    if isinstance(block, ReparamConv2d) and is_frozen(block):
                        block.eval()
        if mode and self.deploy:
            warnings.warn(
                f'{type(self).__name__} is in deploy form, without BatchNorms, and will not train '
                'well: fine-tune the training form, or the plain form of convert.py --keep-bn',
                stacklevel=2,
            )
        return self

    def switch_to_deploy(self) -> nn.Module:
        """Turn this backbone into its deploy form, in place; see :func:`mmorepa.switch_to_deploy`.

        Returns:
            nn.Module: The backbone itself.
        """
        return switch_to_deploy(self)


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of it is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())
