"""Initialising a backbone from a checkpoint, with nothing dropped in silence.

MMEngine's ``init_cfg=dict(type='Pretrained', ...)`` loads what fits and ignores the rest. In a
re-parameterised backbone the rest would be branches with random values, so here it is an error. The
checkpoint of a plain network can be loaded too: the blocks then imitate its convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

from mmengine import fileio
from mmengine.logging import print_log
from torch import Tensor, nn

from ..checkpoints.comparing import probe_image
from ..checkpoints.files import load_checkpoint
from ..checkpoints.forms import refuse_non_finite
from ..checkpoints.state_dict import misfit, with_counters
from ..convs import verify
from ..convs.convert.plain import imitating, plain_reference, wanted
from ..convs.convert.squeezing import TOLERANCE
from ..errors import UserError
from .key_names import named_for

#: Height and width in pixels of the image on which outputs are compared.
PROBE = 64


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None) -> str:
    """Load a whole checkpoint into a backbone, and log what was loaded.

    The checkpoint may be one of the same network with blocks, or of the plain network, under the
    names of torchvision, timm or OpenMMLab. If it is plain, the blocks imitate its convolutions and
    the function is kept. Tensors of other parts of the model, such as a head, are ignored. What a
    config adds to the network, offsets of deformable convolutions and plugins, keeps its values if
    the checkpoint is without it.

    Args:
        backbone (nn.Module): The backbone to load into.
        checkpoint (str): A path, a URL or a name such as ``torchvision://resnet50``; see
            :func:`mmorepa.checkpoints.load_checkpoint`.
        prefix (str, optional): The prefix of the backbone's keys in the checkpoint, such as
            ``'backbone.'``. By default it is detected.

    Returns:
        str: What was loaded, on one line. It is logged too.

    Raises:
        UserError: If there is no such file, it cannot be read, no key has the prefix, keys or
            shapes differ, blocks cannot imitate, or weights are not finite. The error names the
            first missing and the first unexpected key.
    """
    if '://' not in str(checkpoint) and not fileio.exists(checkpoint):
        raise UserError(
            f'no pretraining checkpoint at {checkpoint}: pretrain first, or name another with '
            '--cfg-options model.backbone.init_cfg.checkpoint=FILE'
        )
    state_dict = load_checkpoint(checkpoint)['state_dict']
    if prefix:
        prefix = f'{prefix.rstrip(".")}.'
        state_dict = {
            k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)
        }
        if not state_dict:
            raise UserError(
                f'{checkpoint} has no key that begins with {prefix}: wanted a checkpoint with that '
                'backbone, or another prefix in init_cfg'
            )
    said = load_into(backbone, state_dict, str(checkpoint))
    print_log(said, logger='current')
    return said


def load_into(backbone: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> str:
    """Load a state dict into a backbone; see :func:`load_pretrained`.

    Args:
        backbone (nn.Module): The backbone to load into.
        state_dict (Mapping[str, Tensor]): The state dict of a backbone, or of a model around one.
        source (str): The name of the checkpoint in error messages.

    Returns:
        str: What was loaded, on one line.

    Raises:
        UserError: If keys or shapes differ, blocks cannot imitate, or weights are not finite.
    """
    found = named_for(backbone, state_dict, source)
    own = {key: value for key, value in found.items() if key.split('.')[0] in backbone._modules}
    absent = _absent_additions(backbone, own)
    added = {k: v for k, v in backbone.state_dict().items() if k.startswith(absent)}
    own |= added
    needed = wanted(backbone, own)
    own = with_counters(needed, own)
    difference = misfit(needed, own)
    if difference:
        raise UserError(
            f'{source} does not fit {type(backbone).__name__}: {difference}; wanted the same '
            'network, plain or in the form that the config builds'
        )
    plain = imitating(backbone, own)
    reference = plain_reference(backbone, own) if plain else None
    backbone.load_state_dict(own)
    refuse_non_finite(backbone, source)
    said = f'loaded all {len(own) - len(added)} tensors of {source}'
    if plain:
        said += f', a plain network: {imitation(reference, backbone, len(plain), source)}'
    if added:
        said += (
            f'; {len(added)} that the config adds keep their values, such as {next(iter(added))}'
        )
    left = [key for key in found if key not in own]
    return f'{said}; left {len(left)} of other parts, such as {left[0]}' if left else said


def _absent_additions(backbone: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The prefixes of deformable offsets and plugins of which a state dict has nothing."""
    prefixes = []
    for name, module in backbone.named_modules():
        # Blocks of the libraries list their plugins, such as in after_conv1_plugin_names.
        plugins = [v for key, v in vars(module).items() if key.endswith('_plugin_names')]
        names = sum(plugins, ['conv_offset'])
        prefixes += [f'{name}.{part}.' for part in names if part in module._modules]
    return tuple(p for p in prefixes if not any(key.startswith(p) for key in state_dict))


def imitation(before: nn.Module, after: nn.Module, blocks: int, source: str) -> str:
    """How well the blocks of a backbone imitate a plain network.

    Args:
        before (nn.Module): The plain backbone.
        after (nn.Module): The backbone with blocks, from the same weights.
        blocks (int): How many blocks imitate a convolution.
        source (str): The name of the checkpoint in error messages.

    Returns:
        str: How far the outputs on an image are apart, in words.

    Raises:
        UserError: If they are further apart than rounding brings them.
    """
    error = apart(before, after)
    if not error < TOLERANCE:
        raise UserError(
            f'{source}: {blocks} blocks do not compute what the plain network computes, '
            f'outputs are {error:.1e} apart: leave convolutions plain with reparam.where'
        )
    return f'{blocks} blocks imitate its convolutions, outputs are {error:.1e} apart'


def apart(before: nn.Module, after: nn.Module) -> float:
    """The largest difference of two backbones' outputs on an image, relative, in eval mode."""
    sample = next(before.parameters())
    first = next(m for m in before.modules() if isinstance(m, nn.Conv2d))
    image = probe_image(PROBE, first.in_channels).to(sample)
    return verify(before, after, image).relative
