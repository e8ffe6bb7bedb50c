"""Starting from a whole model's weights with ``load_from``, with nothing dropped in silence."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from ..backbones.key_names import named_for
from ..backbones.pretrained import imitation
from ..checkpoints.state_dict import misfit, unusable, with_counters
from ..convs import ReparamConv2d
from ..convs.convert.plain import imitating, plain_reference, wanted
from ..errors import UserError
from .squeezed_step import unwrap


@HOOKS.register_module()
class LoadFromHook(Hook):
    """Refuses a ``load_from`` checkpoint that does not fit the model completely.

    MMEngine by itself loads what fits, warns about the rest in the log, and trains. With this hook
    that is an error. If the checkpoint is that of the plain model, the blocks imitate its
    convolutions, and a line in the log says how many do and how far the outputs of the backbone
    are from the plain one's. A model that renames or resizes what it loads, such as a transformer
    whose images have another size, does so here too::

        default_hooks = dict(load_from=dict(type='mmorepa.LoadFromHook'))

    ``tools/train.py`` adds it to a config that lacks it.

    Args:
        partial (bool): Load what fits and log how much that is, for example the weights of a
            detector for other classes. Defaults to False.

    Raises:
        UserError: If keys are missing or unexpected, or shapes differ, and ``partial`` is False or
            the training is resumed; or if the checkpoint is a deploy form and the model has blocks.
    """

    #: After hooks that replace the checkpoint by another, before those that copy it.
    priority = 'HIGH'

    def __init__(self, partial: bool = False):
        self.partial = partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Rename the weights to the model's names, and check that none is missing."""
        model = unwrap(runner.model)
        source = runner._load_from or 'the checkpoint'
        state_dict = checkpoint.get('state_dict', checkpoint)
        if reason := unusable(state_dict):
            raise UserError(f'{source} holds no state_dict of tensors: {reason}')
        state_dict = {key.removeprefix('module.'): value for key, value in state_dict.items()}
        parts = runner.model.modules()
        is_sharded = any(isinstance(part, FullyShardedDataParallel) for part in parts)
        if runner._resume:
            # The state dict of a sharded model is another one.
            if not is_sharded:
                own = model.state_dict()
                if difference := misfit(own, with_counters(own, state_dict)):
                    raise UserError(
                        f'{source} is of another model: {difference}; resume with the config that '
                        'it was trained with'
                    )
            return
        fitting, said = fitting_tensors(model, state_dict, source, self.partial, is_sharded)
        if plain := imitating(model, fitting):
            if is_sharded or not hasattr(model, 'backbone'):
                said += f', a plain network: {len(plain)} blocks imitate its convolutions'
            else:
                loaded = copy.deepcopy(model)
                loaded.load_state_dict(fitting, strict=False)
                backbones = plain_reference(model, fitting).backbone, loaded.backbone
                said += f', a plain network: {imitation(*backbones, len(plain), str(source))}'
        runner.logger.info(said)
        checkpoint['state_dict'] = fitting


def fitting_tensors(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str,
    partial: bool = False,
    is_sharded: bool = False,
) -> tuple[dict[str, Tensor], str]:
    """What ``load_from`` loads into a model.

    Args:
        model (nn.Module): The model.
        state_dict (Mapping[str, Tensor]): Its weights, or those of the plain model.
        source (str): Where they come from, for messages.
        partial (bool): Whether a part of them is enough. Defaults to False.
        is_sharded (bool): Whether the model is one of FSDP's. Defaults to False.

    Returns:
        tuple[dict[str, Tensor], str]: The tensors, and how many they are in words.

    Raises:
        UserError: If they do not fit the model, or are a deploy form and the model has blocks.
    """
    found = named_for(model, state_dict, source)
    needed = wanted(model, found)
    fitting = {
        key: value
        for key, value in found.items()
        if key in needed and value.shape == needed[key].shape
    }
    difference = misfit(needed, with_counters(needed, found))
    refused = _refused(model, found) if difference and not is_sharded else None
    if refused == '':
        difference, fitting = '', found
    elif refused:
        resized = [key for key in found if key in needed and key not in fitting]
        fitting |= {k: found[k] for k in resized if f'size mismatch for {k}:' not in refused}
    if difference:
        fitting = _whole_blocks(model, fitting, needed)
    if difference and not (partial and fitting):
        raise UserError(
            f'{source} does not fit the model: {difference}; load_from wants all of it. For a '
            'backbone alone use model.backbone.init_cfg, or train.py --init; to load what '
            "fits, set default_hooks.load_from=dict(type='mmorepa.LoadFromHook', partial=True)"
        )
    said = f'loaded {len(fitting)} of the {len(needed)} tensors of the model from {source}'
    if refused == '':
        said = f'loaded all {len(found)} tensors of {source}, which the model itself adapts'
    return fitting, said


def _refused(model: nn.Module, state_dict: Mapping) -> str | None:
    """What a model refuses of a state dict after its own renaming and resizing; None if unknown."""
    integers, own = (
        sum(not value.is_floating_point() for value in values.values())
        for values in (state_dict, model.state_dict())
    )
    if integers > own:  # quantized weights, which torch would convert without their scale
        return None
    try:
        copy.deepcopy(model).load_state_dict(state_dict)
    except Exception as error:  # the model's own code may raise anything
        return str(error) if 'in loading state_dict for' in str(error) else None
    return ''


def _whole_blocks(model: nn.Module, fitting: Mapping, needed: Mapping) -> dict:
    """A state dict without the blocks of which it has a part alone."""
    there, parts = with_counters(needed, fitting).keys(), set()
    for name, module in model.named_modules():
        if isinstance(module, ReparamConv2d):
            own = {key for key in needed if key.startswith(f'{name}.')}
            parts |= own if own - there else set()
    return {key: value for key, value in fitting.items() if key not in parts}
