"""What is compared: a network with one kind of block in it, or the model of a config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...checkpoints.models import build_model
from ...convs.blocks.table import BLOCKS
from ...engine.quiet import quiet_mmengine
from ...engine.run import load_config
from ...errors import UserError
from ...repvgg_archs import ARCHS
from . import released
from .operations import tensors_in

CLASSES = 1000

#: The networks that have a name, as mmpretrain's registry builds them.
NETWORKS: dict[str, dict] = {
    **{f'resnet{d}': dict(type='OREPAResNet', depth=d) for d in (18, 34, 50, 101, 152)},
    **{f'resnext{d}': dict(type='OREPAResNeXt', depth=d) for d in (50, 101, 152)},
    **{f'repvgg-{arch.lower()}': dict(type='OREPARepVGG', arch=arch) for arch in ARCHS},
}

#: Subjects by name: ``reparam`` of the backbones.
REPARAMS: dict[str, str | dict | None] = {
    'none': None,
    **{name: name for name in BLOCKS if name != 'OREPA-RepVGG'},
    'OREPA-squeezed': dict(type='OREPA', mode='squeezed'),
    'OREPA-offline': dict(type='OREPA', mode='offline'),
}

#: The subject of squeezed training whose update is shared out among processes.
SHARED_OUT = 'OREPA-shared-out'

RELEASED = 'released-'


@dataclass(frozen=True)
class Subject:
    """One thing to be compared with others.

    Attributes:
        name (str): What to call it.
        reparam (str | dict, optional): ``reparam`` of the backbone; None is the plain network.
        config (str, optional): A config file; its model is measured, whatever the network.
        released (str, optional): A block of the released code, see
            :data:`mmorepa.lab.benchmark.released.BLOCKS`.
        rung (str): In the paper's comparison, what has been added to the network so far.
        shared_out (bool): Whether processes share out the update of squeezed training.
    """

    name: str
    reparam: str | dict | None = None
    config: str | None = None
    released: str | None = None
    rung: str = ''
    shared_out: bool = False


def parse(text: str) -> Subject:
    """The subject of a name, in any case, or of the path of a config.

    Raises:
        UserError: If it is neither.
    """
    if Path(text).suffix in ('.py', '.json', '.yaml', '.yml'):
        if not Path(text).is_file():
            raise UserError(f'no config at {text}: check the path')
        return Subject(Path(text).stem, config=text)
    known = {name.lower(): Subject(name, reparam) for name, reparam in REPARAMS.items()}
    squeezed = REPARAMS['OREPA-squeezed']
    known[SHARED_OUT.lower()] = Subject(SHARED_OUT, squeezed, shared_out=True)
    for block in released.BLOCKS:
        known[RELEASED + block.lower()] = Subject(RELEASED + block, released=block)
    if text.lower() not in known:
        names = ', '.join(subject.name for subject in known.values())
        raise UserError(f'no subject is named {text!r}: choose from {names}, or give a config file')
    return known[text.lower()]


def build(
    subject: Subject,
    network: str | None,
    width: float = 1.0,
    frozen_stages: int = -1,
    released_path: str | None = None,
) -> nn.Module:
    """The network of a subject, on the CPU and in training mode.

    Args:
        subject (Subject): See there.
        network (str, optional): A name of :data:`NETWORKS`; a config needs none.
        width (float): Factor on the channels of all layers.
        frozen_stages (int): As of the backbones, -1 freezes nothing.
        released_path (str, optional): The checkout that a released subject comes from.

    Returns:
        nn.Module: (N, 3, H, W) to logits (N, 1000); that of a config to what its model gives
        under ``mode='tensor'``.

    Raises:
        UserError: If there is no such network, or it does not come in that form.
    """
    if subject.config is not None:
        return _build_config(subject.config, width, frozen_stages)
    if subject.released is not None:
        if width != 1 or frozen_stages >= 0:
            raise UserError('the released code has networks of width 1 without frozen stages only')
        return released.build(released_path, network, subject.released)
    return Classifier(_build_backbone(subject.reparam, network, width, frozen_stages)).train()


def _build_backbone(reparam, network: str | None, width: float, frozen_stages: int) -> nn.Module:
    from ... import pretrain  # noqa: F401  (registers the backbones)

    if network not in NETWORKS:
        raise UserError(f'no network is named {network!r}: choose from {", ".join(NETWORKS)}')
    cfg = dict(NETWORKS[network], reparam=reparam, frozen_stages=frozen_stages)
    cfg.update(type=f'mmpretrain.{cfg["type"]}', base_channels=scaled(64, width))
    if cfg['type'].endswith('ResNet'):
        cfg.update(stem_channels=scaled(64, width))
    elif cfg['type'].endswith('ResNeXt'):
        cfg.update(stem_channels=scaled(64, width), width_per_group=scaled(4, width))
    else:
        cfg['arch'] = {'stem_channels': scaled(64, width), **ARCHS[cfg['arch']]}
    with quiet_mmengine():
        return MODELS.build(cfg)


def scaled(channels: int, width: float) -> int:
    """``channels`` times ``width``.

    Raises:
        UserError: If that is no whole number of channels.
    """
    if width <= 0 or channels * width != int(channels * width):
        raise UserError(
            f'width {width:g} makes {channels * width:g} of {channels} channels: wanted a factor '
            'that leaves whole numbers, such as 0.25, 0.5 or 2'
        )
    return int(channels * width)


def _build_config(path: str, width: float, frozen_stages: int) -> nn.Module:
    if width != 1 or frozen_stages >= 0:
        raise UserError(
            'width and frozen stages are for networks by name: change them in the config instead'
        )
    cfg = load_config(path)
    with quiet_mmengine():
        model = build_model(cfg)
    if hasattr(model, 'roi_head'):
        raise UserError(
            'a two-stage detector has no raw outputs to measure: give a one-stage detector, a '
            'segmentor or a classifier'
        )
    return RawOutputs(model).train()


class Classifier(nn.Module):
    """A backbone, its last output averaged over height and width, and a linear layer.

    Args:
        backbone (nn.Module): Gives a tuple of feature maps.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        with torch.no_grad():
            channels = backbone.eval()(torch.zeros(1, 3, 32, 32))[-1].shape[1]
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 1000)."""
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


class RawOutputs(nn.Module):
    """An OpenMMLab model with its raw outputs: no data preprocessor, loss or post-processing.

    Args:
        model (nn.Module): Takes ``mode='tensor'``.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor):
        """(N, 3, H, W) to what the model gives, tensors in any nesting."""
        return self.model(x, mode='tensor')


def loss_of(output, labels: Tensor) -> Tensor:
    """A loss to train with: cross entropy of logits (N, C), of anything else the mean square.

    Args:
        output (Tensor | Sequence | Mapping): See :class:`RawOutputs`.
        labels (Tensor): (N,), any whole numbers; taken modulo C.
    """
    if isinstance(output, Tensor) and output.dim() == 2:
        return nn.functional.cross_entropy(output.float(), labels % output.shape[1])
    return sum(tensor.float().square().mean() for tensor in tensors_in(output))
