"""What the OREPA ResNets of all OpenMMLab libraries share."""

from __future__ import annotations

import contextlib
import re
import warnings
from functools import partial

from torch import nn

from ..convs import OREPAConv2d, switch_to_deploy
from ..convs.orepa import keeping_kernels
from ..convs.substitute import substitute_convs
from ..errors import UserError
from .pretrained import load_pretrained

#: The convolutions of a ResNet that are re-parameterised: stem, residual blocks and shortcuts,
#: as mmpretrain, mmdet and mmseg name them. Plugins keep theirs.
_CONVS = re.compile(
    r'conv1|stem\.\d+(\.conv)?|(?P<block>layer\d+\.\d+)\.(conv\d|(?P<shortcut>downsample)\.\d+)'
)

#: Block builders by the name that ``reparam`` takes: convolution in, block out.
BLOCKS = dict(OREPA=OREPAConv2d.from_conv)


class ReparamResNetMixin:
    """Turns a library's ResNet into a re-parameterised one. Goes before it in the bases.

    The library builds its network; then the plain convolutions of the stem, of the residual
    blocks and of a bottleneck's projection shortcut are replaced by blocks. A basic block's
    shortcut stays plain, as in the paper's ResNet-18 and -34.

    Args:
        args: The library's own.
        reparam (str | dict, optional): ``'OREPA'``; a dict with that ``type`` and with
            ``branches`` or ``online`` of :class:`mmorepa.OREPAConv2d`; or None for the plain
            network. Defaults to ``'OREPA'``.
        deploy (bool): Build the deploy form, one convolution with bias a block, to load a
            converted checkpoint. Defaults to False.
        kwargs: The library's own.

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

    def _reparameterize(self, reparam: str | dict) -> None:
        options = dict(type=reparam) if isinstance(reparam, str) else dict(reparam)
        block_type = options.pop('type', None)
        if block_type not in BLOCKS:
            raise UserError(
                f'{type(self).__name__}: reparam={reparam!r} is not known; '
                f'choose {", ".join(map(repr, BLOCKS))} or None'
            )
        build = partial(BLOCKS[block_type], **options)
        if not substitute_convs(self, build, self._is_reparameterized):
            raise UserError(
                f'{type(self).__name__}: reparam={reparam!r} found no plain convolution to '
                f'replace; leave conv_cfg at None instead of {self.conv_cfg}'
            )

    def _is_reparameterized(self, name: str) -> bool:
        match = _CONVS.fullmatch(name)
        if match and match['shortcut']:
            return hasattr(self.get_submodule(match['block']), 'conv3')
        return match is not None

    def init_weights(self) -> None:
        """As the library has it, but a pretrained checkpoint has to fit as a whole.

        Raises:
            UserError: See :func:`mmorepa.backbones.pretrained.load_pretrained`.
        """
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg]
        pretrained = [cfg for cfg in configs if cfg and cfg['type'] == 'Pretrained']
        if self.reparam is None or not pretrained:
            super().init_weights()
            return
        load_pretrained(self, pretrained[-1]['checkpoint'], pretrained[-1].get('prefix'))

    @property
    def deploy(self) -> bool:
        """Whether this backbone is in deploy form, however it came to be."""
        convs = (m for m in self.modules() if isinstance(m, (nn.Conv2d, OREPAConv2d)))
        # The libraries build their convolutions without a bias; folding a BatchNorm adds one.
        return all(type(conv) is not OREPAConv2d and conv.bias is not None for conv in convs)

    def train(self, mode: bool = True) -> nn.Module:
        """As ``nn.Module`` has it; the libraries' own forget to return the module."""
        # MMEngine's iteration-based loop calls train() in every step. Its EMA swap, which nothing
        # else could see, comes with a change between training and evaluation.
        steady = mode and self.training
        with keeping_kernels(self) if steady else contextlib.nullcontext():
            super().train(mode)
        if mode and self.deploy:
            warnings.warn(
                f'{type(self).__name__} is in deploy form, without BatchNorms, and will not train '
                'well: fine-tune the training form, or the squeezed form of convert.py --keep-bn',
                stacklevel=2,
            )
        return self

    def switch_to_deploy(self) -> nn.Module:
        """Turn this backbone into its deploy form, in place; see :func:`mmorepa.switch_to_deploy`.

        Returns:
            nn.Module: The backbone itself.
        """
        return switch_to_deploy(self)
