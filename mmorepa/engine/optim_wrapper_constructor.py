"""The optimizer's rules for each layer: those of MMEngine, and those for the parts of a block."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn
from torch.nn import GroupNorm, LayerNorm
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..convs import ReparamConv2d
from ..convs.blocks.kernel_penalty import decays_as_a_kernel, kernel_parameters
from ..convs.generated import GeneratedConv2d
from ..convs.orepa.block import DeepLinearStem
from ..convs.orepa.branches import Branch
from ..errors import UserError
from .kernel_decay_step import KernelDecay, decaying_blocks
from .squeezed_step import squeeze_step, squeezed_blocks, trained_through_branches

#: MMEngine's keys of ``paramwise_cfg``.
MMENGINE_KEYS = (
    'custom_keys',
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'dcn_offset_lr_mult',
    'bypass_duplicate',
)
#: A key that MMEngine adds to dicts that a config inherits from another library's config.
SCOPE = '_scope_'
#: The kinds of parameters of a block that can have multipliers of their own, and the kind whose
#: multipliers each takes where its own are not given.
FAMILY = dict(stem='stem', stem_scale='stem', block='block', scale='block')
KINDS = tuple(FAMILY)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class OREPAOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's default constructor, with multipliers for the parts of OREPA blocks.

    MMEngine's keys of ``paramwise_cfg`` keep their meaning. In particular, a parameter that a
    custom key matches follows that key only. The multipliers added here *compose*: they multiply
    the learning rate and the decay that MMEngine's keys gave a parameter. This config trains the
    stem at a hundredth of the learning rate and the rest of the backbone at a tenth, without decay
    of norm layers::

        paramwise_cfg=dict(
            norm_decay_mult=0,
            patterns={'backbone.*': dict(lr_mult=0.1)},
            stem=dict(lr_mult=0.1),
        )

    Args:
        optim_wrapper_cfg (dict): The config of the optimizer wrapper, see MMEngine.
        paramwise_cfg (dict, optional): MMEngine's keys, and

            - ``stem`` (dict): ``lr_mult`` and ``decay_mult`` of all parameters of deep linear
              stems, the blocks with kernels of 7 x 7 and larger.
            - ``stem_scale`` (dict): The multipliers of the scales in these stems. A multiplier
              that is not given is taken from ``stem``.
            - ``block`` (dict): The multipliers of all parameters of the other generated kernels.
            - ``scale`` (dict): The multipliers of the scales in these. A multiplier that is not
              given is taken from ``block``.
            - ``patterns`` (dict[str, dict]): The multipliers of all parameters whose whole name
              matches, where ``*`` stands for any characters: ``'*.conv1.kernel.*.scale'``. All
              patterns that match a parameter count, in addition to ``stem`` and the others.
            - ``norm_bias_lr_mult`` (float): Multiplies the base learning rate for the biases of
              norm layers, which ``bias_lr_mult`` does not change.
            - ``kernel_decay`` (bool): Apply weight decay to the equivalent kernels of blocks
              instead of to their branches' weights and scales, see
              :mod:`mmorepa.convs.blocks.kernel_penalty`. A block's decay is the largest that one of
              these would have had. Defaults to False.

    The released recipe is ``dict(bias_lr_mult=2, norm_bias_lr_mult=2, bias_decay_mult=0,
    norm_decay_mult=0)``, which trains every bias at twice the learning rate. Scales are neither
    norms nor biases, so they do decay.

    Every multiplier is logged with the number of parameters that it changed, and each of these with
    its final learning rate and decay. Schedules that multiply the learning rate keep the ratios
    between groups. An absolute ``eta_min`` does not keep them; use ``eta_min_ratio``.

    Raises:
        UserError: If the type of the optimizer, a key or a field does not exist, a multiplier is
            not a number of at least zero, the optimizer config lacks the ``lr`` or
            ``weight_decay`` to be multiplied, modules share a parameter without
            ``bypass_duplicate``, or ``kernel_decay`` finds no block or a fused optimizer.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer of a model and its wrapper.

        If blocks are in mode ``'squeezed'``, the wrapper gets the step of
        :class:`mmorepa.SqueezedTraining`, whatever its ``type`` is.
        """
        kind = self.optimizer_cfg.get('type')
        # The library of the config may have it.
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            if isinstance(kind, str) and registry.get(kind) is None:
                raise UserError(f'there is no optimizer of type {kind!r}: choose another one')
        self._kernel_decays: list[tuple[ReparamConv2d, float]] = []
        with trained_through_branches(model):
            wrapper = super().__call__(model)
        if self._kernel_decays:
            KernelDecay(self._kernel_decays).attach(wrapper.optimizer)
        return squeeze_step(wrapper, model) if squeezed_blocks(model) else wrapper

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        known = (*MMENGINE_KEYS, *KINDS, 'patterns', 'norm_bias_lr_mult', 'kernel_decay')
        for key in self.paramwise_cfg:
            if key not in known and key != SCOPE:
                raise UserError(
                    f'paramwise_cfg has {key!r}, which does not exist; choose from '
                    f'{", ".join(known)}'
                )
        for key in (*KINDS, 'patterns'):
            value = self.paramwise_cfg.get(key, {})
            if not isinstance(value, dict):
                raise UserError(f'paramwise_cfg has {key}={value!r}: wanted a dict')
        for rule in self._rules():
            self._validate_fields(*rule)
        if self.paramwise_cfg.get('kernel_decay'):
            self._validate_kernel_decay()

    def _validate_kernel_decay(self) -> None:
        if self.paramwise_cfg['kernel_decay'] is not True:
            found = self.paramwise_cfg['kernel_decay']
            raise UserError(f'paramwise_cfg has kernel_decay={found!r}: wanted True or False')
        if not self.base_wd:
            raise UserError(
                'paramwise_cfg: kernel_decay wants a weight_decay above 0, but the optimizer has '
                f'weight_decay={self.base_wd}: give it one, or leave kernel_decay out'
            )
        if self.optimizer_cfg.get('fused'):
            # A fused optimizer unscales AMP's gradients itself, after the term was added.
            raise UserError('paramwise_cfg: kernel_decay wants an optimizer without fused=True')

    def _validate_fields(self, rule: str, fields: dict) -> None:
        bases = dict(lr_mult=('lr', self.base_lr), decay_mult=('weight_decay', self.base_wd))
        if not isinstance(fields, dict) or set(fields) - set(bases):
            raise UserError(
                f'paramwise_cfg: {rule} is {fields!r}: wanted a dict with lr_mult, decay_mult or '
                'both'
            )
        for field, mult in fields.items():
            if isinstance(mult, bool) or not isinstance(mult, (int, float)) or not mult >= 0:
                raise UserError(
                    f'paramwise_cfg: {rule} has {field}={mult!r}: wanted a number, at least 0'
                )
            name, base = bases[field]
            if base is None:
                raise UserError(
                    f'paramwise_cfg: {rule} has {field}, but the optimizer has no {name} in the '
                    f'config: give it one'
                )

    def _rules(self) -> list[tuple[str, dict]]:
        """Each kind and each pattern that has multipliers, with its multipliers."""
        own = {kind: self.paramwise_cfg.get(kind, {}) for kind in KINDS}
        kinds = {kind: {**own[family], **own[kind]} for kind, family in FAMILY.items()}
        patterns = _without_scope(self.paramwise_cfg.get('patterns', {}))
        rules = [(rule, _without_scope(fields)) for rule, fields in kinds.items()]
        return [rule for rule in (*rules, *patterns.items()) if rule[1] != {}]

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Append the groups of the parameters of ``module`` to ``params``, in place.

        MMEngine makes a group for each parameter, and an optimizer handles each group by itself.
        Here parameters with the same options share a group, so that a step launches few operations.
        """
        before = len(params)
        super().add_params(params, module, prefix=prefix, **kwargs)
        # MMEngine calls this again for each child; only the first call is for the whole model.
        if not prefix:
            _refuse_shared(params[before:], module)
            self._decay_depthwise(params[before:], module)
            self._raise_norm_biases(params[before:], module)
            self._multiply(params[before:], module)
            if self.paramwise_cfg.get('kernel_decay'):
                self._move_decay(params[before:], module)
            params[before:] = _merged(params[before:])

    def _decay_depthwise(self, groups: list[dict], model: nn.Module) -> None:
        """Apply MMEngine's multiplier for depthwise convolutions to the branches of such blocks."""
        mult = self.paramwise_cfg.get('dwconv_decay_mult')
        if mult is None:
            return
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        branches = {
            id(parameter): names[id(parameter)]
            for block in model.modules()
            if decays_as_a_kernel(block) and block.in_channels == block.groups
            for parameter in kernel_parameters(block)
        }
        for group in self._without_custom_key(groups, branches):
            group['weight_decay'] = self.base_wd * mult

    def _without_custom_key(self, groups: list[dict], names: dict[int, str]) -> Iterator[dict]:
        """The groups of parameters with these names, by id, which no custom key of MMEngine has."""
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        for group in groups:
            name = names.get(id(group['params'][0]))
            if name and not any(key in name for key in custom_keys):
                yield group

    def _raise_norm_biases(self, groups: list[dict], model: nn.Module) -> None:
        mult = self.paramwise_cfg.get('norm_bias_lr_mult')
        if mult is None:
            return
        norms = (_BatchNorm, _InstanceNorm, GroupNorm, LayerNorm)
        biases = {
            id(norm.bias): f'{name}.bias'
            for name, norm in model.named_modules()
            if isinstance(norm, norms) and norm.bias is not None
        }
        for group in self._without_custom_key(groups, biases):
            group['lr'] = self.base_lr * mult

    def _multiply(self, groups: list[dict], model: nn.Module) -> None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        kinds = kinds_of(model)
        changed = {}
        for rule, fields in self._rules():
            matched = 0
            for group in groups:
                parameter = id(group['params'][0])
                name = names[parameter]
                matches = kinds.get(parameter) == rule if rule in KINDS else fnmatchcase(name, rule)
                if not matches:
                    continue
                matched += 1
                changed[name] = group
                if 'lr_mult' in fields:
                    group['lr'] = group.get('lr', self.base_lr) * fields['lr_mult']
                if 'decay_mult' in fields:
                    decay = group.get('weight_decay', self.base_wd)
                    group['weight_decay'] = decay * fields['decay_mult']
            text = ', '.join(f'{field}={mult:g}' for field, mult in fields.items())
            print_log(
                f'paramwise_options -- {rule} ({text}): {matched} trainable parameters',
                logger='current',
                level=logging.INFO if matched else logging.WARNING,
            )
        for name, group in changed.items():
            values = [f'{key}={group[key]:g}' for key in ('lr', 'weight_decay') if key in group]
            print_log(f'paramwise_options -- {name}: {", ".join(values)}', logger='current')

    def _move_decay(self, groups: list[dict], model: nn.Module) -> None:
        """Set the decay of the parameters of blocks to zero and keep it for their kernels."""
        blocks = decaying_blocks(model)
        if not blocks:
            raise UserError(
                f'paramwise_cfg has kernel_decay, but {type(model).__name__} has no block with '
                'branches: leave it out, weight decay acts on the kernels as it is'
            )
        own = {id(group['params'][0]): group for group in groups}
        for name, block in blocks.items():
            parts = [own[id(part)] for part in kernel_parameters(block) if id(part) in own]
            decay = max((part.get('weight_decay', self.base_wd) for part in parts), default=0.0)
            for part in parts:
                part['weight_decay'] = 0.0
            self._kernel_decays.append((block, decay))
            print_log(
                f'paramwise_options -- {name}: weight_decay={decay:g} of its kernel, not of the '
                f'{len(parts)} parameters that make it up',
                logger='current',
            )


def kinds_of(model: nn.Module) -> dict[int, str]:
    """The parameters of a model that are of one of :data:`KINDS`.

    Args:
        model (nn.Module): Any model.

    Returns:
        dict[int, str]: ``'stem'``, ``'stem_scale'``, ``'block'`` or ``'scale'`` by the ``id`` of a
        parameter.
    """
    kinds = {}
    for module in model.modules():
        if isinstance(module, GeneratedConv2d):
            is_stem = isinstance(module.kernel, DeepLinearStem)
            for parameter in module.kernel.parameters():
                kinds[id(parameter)] = 'stem' if is_stem else 'block'
            for part in module.kernel.modules():
                if isinstance(part, Branch) and part.scale is not None:
                    kinds[id(part.scale)] = 'stem_scale' if is_stem else 'scale'
    return kinds


def _refuse_shared(groups: list[dict], model: nn.Module) -> None:
    """Refuse parameters in two groups. Merged they would be one group and be stepped twice."""
    count = Counter(id(group['params'][0]) for group in groups)
    for name, parameter in model.named_parameters():
        if count[id(parameter)] > 1:
            raise UserError(
                f'{name} is a parameter of {count[id(parameter)]} modules: give paramwise_cfg '
                'bypass_duplicate=True, so that it is stepped once'
            )


def _merged(groups: list[dict]) -> list[dict]:
    merged = []
    for group in groups:
        options = {key: value for key, value in group.items() if key != 'params'}
        for params, others in merged:
            if options == others:
                params.extend(group['params'])
                break
        else:
            merged.append((list(group['params']), options))
    return [dict(options, params=params) for params, options in merged]


def _without_scope(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key != SCOPE}
