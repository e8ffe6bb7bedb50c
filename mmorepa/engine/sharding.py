"""FSDP that can be resumed, and that also works on a CPU."""

from __future__ import annotations

import torch
from mmengine._strategy import FSDPStrategy
from mmengine.config import Config
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullyShardedDataParallel

from ..config_types import is_of_type

#: The keys of an optimizer's own state.
OPTIMIZER = ('state', 'param_groups')


@STRATEGIES.register_module()
class ResumableFSDPStrategy(FSDPStrategy):
    """MMEngine's FSDP strategy, changed so that it can load an optimizer's state.

    With torch 2.1 and newer MMEngine's own cannot. With ``state_dict_cfg='full'`` this strategy
    writes ordinary checkpoints.
    """

    def optim_state_dict(self) -> dict:
        """As in MMEngine, and the rest of the optimizer wrapper's state, such as a loss scale."""
        beside = _beside(self.optim_wrapper.state_dict())
        return {**super().optim_state_dict(), **beside}

    def load_optim_state_dict(self, state_dict: dict) -> None:
        """As in MMEngine, but with arguments by name, because torch has changed their order."""
        beside = _beside(state_dict)
        state_dict = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict={key: state_dict[key] for key in OPTIMIZER},
        )
        self.optim_wrapper.load_state_dict({**state_dict, **beside})


def _beside(state_dict: dict) -> dict:
    return {key: value for key, value in state_dict.items() if key not in OPTIMIZER}


def prepare(cfg: Config) -> None:
    """Replace MMEngine's FSDP strategy by the one above, on the CPU if there is no GPU.

    Args:
        cfg (Config): Changed in place.
    """
    strategy = cfg.get('strategy') or {}
    if not is_of_type(strategy, 'FSDPStrategy'):
        return
    strategy['type'] = 'mmorepa.ResumableFSDPStrategy'
    if torch.cuda.is_available():
        return
    wrapper = dict(type='MMFullyShardedDataParallel', device_id='cpu')
    strategy['model_wrapper'] = wrapper | (strategy.get('model_wrapper') or {})
    if strategy.get('state_dict_cfg') == 'full':
        # MMEngine's setting moves tensors to the CPU. Torch 2.5 frees those that are there already.
        strategy['state_dict_cfg'] = dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig'),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig'),
        )
