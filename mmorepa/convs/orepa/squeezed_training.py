"""Squeezed training: the network that trains is the plain one.

The kernel ``K(theta)`` of a block depends only on its parameters ``theta`` and not on the images.
Forward and backward pass can therefore run on ``K`` as an ordinary leaf, and the parameters are
updated in the optimizer's step: the gradient ``G = dL/dK`` is pulled back once to
``dL/dtheta = J(theta)^T G``, the optimizer steps ``theta``, and ``K`` is generated again. The
numbers are those of the paper's online form. Everything around the step sees the plain network.

With several processes the blocks are shared out (stage 1 of ZeRO, by block; Rajbhandari et al., SC
2020). The gradients of the plain network are reduced as usual, which is exact because pulling back
is linear in ``G``. Then each process pulls back, steps and generates the blocks that it owns, and
sends their kernels to the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ...errors import UserError
from .. import kernels
from ..generated import GeneratedConv2d
from .block import BranchSum, DeepLinearStem
from .fast import Terms, add_up, is_fast, kernel_rows, named_tensors, pull_back, terms_of
from .stacks import Stack, stack_key

#: Roughly the number of floating-point operations that take as much time as one parameter takes in
#: the optimizer's step and in passes over memory. It is used to share out the blocks evenly.
OPERATIONS_PER_PARAMETER = 500


class SqueezedTraining:
    """Trains a model's generated blocks through their kernels.

    ``training.step()`` takes the place of ``optimizer.step()``::

        training = mmorepa.SqueezedTraining(model, optimizer)
        for images, labels in loader:
            loss(model(images), labels).backward()
            training.step()
            training.zero_grad()

    It calls :meth:`pull_back`, ``optimizer.step()`` and :meth:`generate`. If something has to
    happen between them, such as unscaling or clipping, call them yourself::

            scaler.scale(loss).backward()
            training.pull_back()
            scaler.unscale_(optimizer)
            training.clip_grad_norm_(1.0)
            scaler.step(optimizer)
            scaler.update()
            training.generate()

    Gradients of several backward passes add up in the kernels and are pulled back once.

    Before :meth:`pull_back` the gradients are those of the plain network. What is done to them
    there, is done to the kernels: ``scaler.unscale_(optimizer)`` does not reach them, and
    ``torch.nn.utils.clip_grad_norm_`` clips by the norm over kernels. To leave a batch out, call
    :meth:`zero_grad`; ``optimizer.zero_grad()`` does not reach the kernels either. A term of the
    loss that reads the parameters of ``kernel`` has no gradient, because they do not require grad;
    use mode ``'online'`` for such a loss, or ``kernel_decay``.

    The parameters that the optimizer holds are trained. Build it over ``model.parameters()``; the
    leaves of the kernels are removed from its groups here, and groups that have nothing else with
    them. A block is frozen if its ``weight`` does not require grad.

    Args:
        model (nn.Module): The model, or the ``DistributedDataParallel`` around it. Blocks in mode
            ``'online'`` are put into mode ``'squeezed'``.
        optimizer (Optimizer): Any optimizer of torch whose step needs no closure: not LBFGS.
        shard (bool, optional): Whether to share the blocks out among the processes of
            ``DistributedDataParallel``'s group, or of ``torch.distributed``. If so, call
            :meth:`consolidate` before checkpoints and before anything else reads the branches, and
            clip with :meth:`clip_grad_norm_`. Use
            ``torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler`` as loss scaler, and
            call its ``unscale_`` before its ``step``, because with a fused optimizer ``step`` alone
            looks for an overflow in one process. Defaults to True if there are several processes.
        grouped (bool, optional): Whether to process blocks of equal geometry together, with few
            operations. Defaults to True except on a CPU, where passes over parts of one block are
            quicker.

    Raises:
        UserError: If there is no block to train, the optimizer lacks the parameters of one, needs a
            closure or shares parameters out itself, a scheduler knows a group of the optimizer that
            is removed, or the model is wrapped already and its blocks are not in squeezed mode.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        shard: bool | None = None,
        grouped: bool | None = None,
    ):
        is_wrapped = isinstance(model, nn.parallel.DistributedDataParallel)
        self.model = model.module if is_wrapped else model
        self._group = model.process_group if is_wrapped else None
        self.optimizer = optimizer
        self.blocks = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, GeneratedConv2d) and module.mode != 'offline'
        }
        if not self.blocks:
            raise UserError(
                f'{type(self.model).__name__} has no block with a generated kernel: train it '
                'without SqueezedTraining'
            )
        if _needs_closure(optimizer):
            raise UserError(
                f'{type(optimizer).__name__} evaluates the model several times within a step: '
                "train it with mode='online'"
            )
        for name, block in self.blocks.items():
            if is_wrapped and (block.mode != 'squeezed' or _requires_grad(block.kernel)):
                raise UserError(
                    f"{name} is not in mode='squeezed', and DistributedDataParallel reduces the "
                    'gradients of its branches: build the model with it, then wrap'
                )
        leaves = {id(block.weight) for block in self.blocks.values() if block.mode == 'squeezed'}
        for group in optimizer.param_groups:
            if 'initial_lr' in group and leaves.issuperset(map(id, group['params'])):
                raise UserError(
                    'a learning-rate scheduler was made before SqueezedTraining, which removes a '
                    'group of parameters that has kernels alone: make the scheduler after it'
                )
        self._trained = {name: _may_be_trained(block) for name, block in self.blocks.items()}
        for block in self.blocks.values():
            block.mode = 'squeezed'
            block.kernel.requires_grad_(False)
        self._take_leaves_out()
        self.grouped = grouped
        self._stacks: list[Stack] = []
        self._stacked: dict[int, tuple[Stack, int]] = {}
        self._stepped: list[str] = []
        self._is_consolidated, self._was_shared_out = True, False
        optimizer.register_state_dict_pre_hook(self._refuse_partial_state)
        optimizer.register_step_pre_hook(self._refuse_missing_pull_back)
        self.shard = processes(self._group) > 1 if shard is None else shard

    @property
    def shard(self) -> bool:
        """Whether the blocks are shared out among the processes. Set it only between two steps.

        Raises:
            UserError: If it is set to True and ``torch.distributed`` is not initialized or the
                optimizer shares parameters out itself, or to False after a step that was shared
                out.
        """
        return self._shard

    @shard.setter
    def shard(self, shard: bool) -> None:
        if shard and not processes():
            raise UserError('shard=True wants torch.distributed: call init_process_group first')
        if shard and _is_zero(self.optimizer):
            raise UserError(
                'shard=True does not go with ZeroRedundancyOptimizer, which shares parameters out '
                'by itself: use the optimizer that it wraps, or shard=False'
            )
        if not shard and self._was_shared_out:
            raise UserError(
                "shard=False wants the optimizer's state of all blocks, which is spread over the "
                'processes: load a checkpoint into a training without shard'
            )
        self._shard = shard
        #: The process in its group, and the process that owns each block, by name.
        self.rank = dist.get_rank(self._group) if shard else 0
        self.owners = share_out(self.blocks, processes(self._group) if shard else 1)
        self._stacks, self._stacked = [], {}

    def _take_leaves_out(self) -> None:
        leaves = {id(block.weight): name for name, block in self.blocks.items()}
        groups = self.optimizer.param_groups
        for group in groups:
            kept = [p for p in group['params'] if id(p) not in leaves]
            for parameter in group['params']:
                if id(parameter) in leaves:
                    self.optimizer.state.pop(parameter, None)
            group['params'] = kept
        groups[:] = [group for group in groups if group['params']]
        held = {id(p) for group in groups for p in group['params']}
        for name, block in self.blocks.items():
            self._trained[name] = [p for p in self._trained[name] if id(p) in held]
            if block.weight.requires_grad:
                self._refuse_untrained(name)

    def _refuse_untrained(self, name: str) -> None:
        if not self._trained[name]:
            raise UserError(
                f'the optimizer has no parameter of the branches of {name}: build it over '
                'model.parameters(), which do not all require grad in squeezed mode, or '
                'freeze the block'
            )

    @property
    def own_blocks(self) -> dict[str, GeneratedConv2d]:
        """The blocks that this process owns, by name."""
        return {n: b for n, b in self.blocks.items() if self.owners[n] == self.rank}

    def step(self) -> None:
        """Pull gradients back, step the optimizer, generate the kernels."""
        self.pull_back()
        self.optimizer.step()
        self.generate()

    def zero_grad(self, **kwargs) -> None:
        """Drop all gradients, also those that were not pulled back.

        Args:
            kwargs: Arguments of the optimizer's ``zero_grad``.
        """
        self.optimizer.zero_grad(**kwargs)
        for block in self.blocks.values():
            # Not block.weight: between step and generate the leaf is out of date.
            block._parameters['weight'].grad = None
            block.has_gradient = False

    @torch.no_grad()
    def pull_back(self) -> None:
        """Compute the gradients of the parameters of this process' blocks from the kernels'.

        Kernels without a gradient, such as those of frozen blocks, are skipped. Afterwards the
        gradients of the kernels are dropped.

        Raises:
            UserError: If some kernels are trained but none has a gradient, if the optimizer lacks
                the parameters of a block that was frozen before, or if a block was squeezed.
        """
        gradients = {}
        for name, block in self.blocks.items():
            if not isinstance(block, GeneratedConv2d):
                raise UserError(
                    f'{name} was turned into a plain convolution: train the model from here with '
                    'an optimizer over its present parameters, without SqueezedTraining'
                )
            leaf = block.weight
            if leaf.grad is not None:
                self._refuse_untrained(name)
                gradients[name] = leaf.grad
        if not gradients and any(block.weight.requires_grad for block in self.blocks.values()):
            raise UserError(
                'no kernel has a gradient to pull back: call backward() first, and '
                'training.zero_grad() after the step'
            )
        self._stepped = list(gradients)
        own = {n: g for n, g in gradients.items() if self.owners[n] == self.rank}
        self._pull_back(own)
        for name in gradients:
            block = self.blocks[name]
            block.weight.grad = None
            block.has_gradient = False

    @torch.no_grad()
    def generate(self) -> None:
        """Generate the kernels of the last :meth:`pull_back`, and send them to other processes."""
        names, self._stepped = self._stepped, []
        own = [name for name in names if self.owners[name] == self.rank]
        if not self.shard:
            self._generate(own)
            return
        # In turns, so that sending one kernel overlaps with generating the next.
        works, turns = [], self._turns
        if self._is_grouped:
            self._generate(own)
        for name in sorted(names, key=turns.get):
            block = self.blocks[name]
            if self.owners[name] != self.rank:
                block.is_behind = True
            elif not self._is_grouped:
                self._generate([name])
            works.append(self._broadcast(block.weight.detach(), self.owners[name]))
        for work in works:
            work.wait()
        for name in names:
            self.blocks[name].hold_leaf()
            if self.owners[name] != self.rank:
                for parameter in self.blocks[name].kernel.parameters():
                    self.optimizer.state.pop(parameter, None)
        self._is_consolidated, self._was_shared_out = False, True

    @torch.no_grad()
    def consolidate(self, *others: nn.Module) -> None:
        """Bring the branches up to date in every process, and the optimizer's state in the first.

        All processes must call this. A checkpoint that the first process writes afterwards is the
        same as without sharing out. If everything is up to date, nothing is done.

        Args:
            others (nn.Module): Copies of the model that are updated along with it, such as its
                moving average. Their branches are brought up to date too.
        """
        if self._is_consolidated:
            return
        copies = [self.blocks, *(dict(other.named_modules()) for other in others)]
        works = []
        for modules in copies:
            for name, owner in self.owners.items():
                branches = modules[name].kernel.parameters()
                works += [self._broadcast(parameter.detach(), owner) for parameter in branches]
        for work in works:
            work.wait()
        for modules in copies:
            for name in self.owners:
                modules[name].is_behind = False
                modules[name].held.outdate()
        self._gather_state()
        for block in self.blocks.values():
            block.hold_leaf()
        self._is_consolidated = True

    def clip_grad_norm_(
        self,
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
        foreach: bool | None = None,
    ) -> Tensor:
        """Like ``torch.nn.utils.clip_grad_norm_``, for all parameters that the optimizer holds.

        If blocks are shared out, the norm is taken over the blocks of all processes.

        Args:
            max_norm (float): The largest norm.
            norm_type (float): The p of the norm, which may be infinity. Defaults to 2.
            error_if_nonfinite (bool): Raise an error if the norm is not finite. Defaults to False.
            foreach (bool, optional): See torch. It has no effect if blocks are shared out.

        Returns:
            Tensor: The norm before clipping.

        Raises:
            RuntimeError: If ``error_if_nonfinite`` is True and the norm is not finite.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        parameters = [p for p in parameters if p.grad is not None]
        if not self.shard:
            return nn.utils.clip_grad_norm_(
                parameters, max_norm, norm_type, error_if_nonfinite, foreach
            )
        ours = {id(p) for block in self.own_blocks.values() for p in block.kernel.parameters()}
        mine = [p.grad for p in parameters if id(p) in ours]
        everybody = [p.grad for p in parameters if id(p) not in ours]
        like = next(next(iter(self.blocks.values())).kernel.parameters())
        norms = [_norm(gradients, norm_type, like) for gradients in (mine, everybody)]
        is_largest = norm_type == float('inf')
        part = norms[0] if is_largest else norms[0] ** norm_type
        operation = dist.ReduceOp.MAX if is_largest else dist.ReduceOp.SUM
        dist.all_reduce(part, operation, group=self._group)
        norms[0] = part if is_largest else part ** (1 / norm_type)
        norm = torch.linalg.vector_norm(torch.stack(norms), norm_type)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(
                f'The total norm of order {norm_type} is {norm.item()}, so it cannot be clipped'
            )
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*mine, *everybody):
            gradient.mul_(factor.to(gradient))
        return norm

    @property
    def _is_grouped(self) -> bool:
        if self.grouped is not None:
            return self.grouped
        leaf = next(iter(self.blocks.values()))._parameters['weight']
        return leaf.device.type != 'cpu'

    @property
    def _turns(self) -> dict[str, tuple[int, int]]:
        """The order in which kernels are sent: the first of each owner, then the second of each."""
        counts: dict[int, int] = {}
        turns = {}
        for name, owner in self.owners.items():
            turns[name] = counts.get(owner, 0), owner
            counts[owner] = counts.get(owner, 0) + 1
        return turns

    def _pull_back(self, gradients: dict[str, Tensor]) -> None:
        jobs = []
        for name, gradient in gradients.items():
            block, wanted = self.blocks[name], self._trained[name]
            if not _sums(block):
                pull_formula_back(block, gradient, wanted)
            elif isinstance(block.kernel, BranchSum):
                jobs.append((block.kernel, gradient, wanted))
            else:
                layers = list(block.kernel)
                found = pull_chain_back(block.kernel, gradient, self._stacked_kernels(layers))
                jobs += [(layer, own, wanted) for layer, own in zip(layers, found)]
        if self._is_grouped:
            jobs = self._pull_stacks_back(jobs)
        for block, gradient, wanted in jobs:
            pull_sum_back(block, gradient, wanted)

    def _stacked_kernels(self, layers: Sequence[BranchSum]) -> list[Tensor] | None:
        """The kernels of a stem's layers that the last :meth:`generate` left in the stacks."""
        self._ensure_stacks()
        if not all(id(layer) in self._stacked for layer in layers):
            return None
        return [stack.kernels[at] for stack, at in (self._stacked[id(layer)] for layer in layers)]

    def _pull_stacks_back(self, jobs: list) -> list:
        """Pull back the jobs whose blocks are stacked, and return the other jobs."""
        self._ensure_stacks()
        found = {id(block): (block, gradient, wanted) for block, gradient, wanted in jobs}
        for stack in self._stacks:
            own = [found.get(id(block)) for block in stack.blocks]
            if all(job and _is_all_wanted(job[0], job[2]) for job in own):
                stack.pull_back([gradient for _, gradient, _ in own])
                for block in stack.blocks:
                    del found[id(block)]
        return list(found.values())

    def _generate(self, names: list[str]) -> None:
        if not names:
            return
        blocks = [self.blocks[name] for name in names]
        left = blocks
        if self._is_grouped:
            self._ensure_stacks()
            sums = {id(part) for block in blocks for part in _sums(block)}
            done = set()
            for stack in self._stacks:
                if any(id(block) in sums for block in stack.blocks):
                    stack.generate()
                    done |= {id(block) for block in stack.blocks}
            left = []
            for block in blocks:
                parts = _sums(block)
                if not parts or not all(id(part) in done for part in parts):
                    left.append(block)
                elif isinstance(block.kernel, DeepLinearStem):
                    layers = [self._stacked[id(part)] for part in parts]
                    layers = [stack.kernels[at] for stack, at in layers]
                    leaf = block._parameters['weight']
                    leaf.copy_(kernels.compose_chain(layers, block.kernel.groups))
        for block in left:
            if isinstance(block.kernel, BranchSum) and _sums(block):
                write_sum(block.kernel, block._parameters['weight'])
            else:
                block._parameters['weight'].copy_(block.squeeze())
        for block in self.own_blocks.values() if self._is_grouped else blocks:
            block.hold_leaf()

    def _ensure_stacks(self) -> None:
        """Stack the blocks of this process, unless they are stacked."""
        if not self._is_grouped or (self._stacks and all(s.is_whole for s in self._stacks)):
            return
        alike: dict = {}
        for block in self.own_blocks.values():
            leaf = block._parameters['weight']
            for part in _sums(block):
                one = leaf if part is block.kernel else None
                alike.setdefault(stack_key(part, one), []).append((part, one))
        self._stacks = [Stack(*zip(*members)) for members in alike.values()]
        self._stacked = {
            id(block): (stack, at)
            for stack in self._stacks
            for at, block in enumerate(stack.blocks)
        }
        for stack in self._stacks:
            stack.generate()
        for block in self.own_blocks.values():
            block.hold_leaf()

    def _gather_state(self) -> None:
        """Bring the optimizer's state of all blocks to the first process."""
        own = {
            (name, key): _on_cpu(self.optimizer.state.get(parameter, {}))
            for name, block in self.own_blocks.items()
            for key, parameter in block.kernel.named_parameters()
        }
        gathered = [None] * processes(self._group) if self.rank == 0 else None
        dist.gather_object(own, gathered, dst=self._global_rank(0), group=self._group)
        for rank, states in enumerate(gathered or ()):
            if rank == self.rank:
                continue
            for (name, key), state in states.items():
                parameter = self.blocks[name].kernel.get_parameter(key)
                if state:
                    self.optimizer.state[parameter] = {
                        k: v.to(parameter.device) if _moves(v) else v for k, v in state.items()
                    }
        # Put the state into the same order as without sharing out.
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        states = {p: self.optimizer.state[p] for p in parameters if p in self.optimizer.state}
        self.optimizer.state.clear()
        self.optimizer.state.update(states)

    def _broadcast(self, tensor: Tensor, owner: int) -> dist.Work:
        """Start broadcasting a dense tensor."""
        flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
        source = self._global_rank(owner)
        return dist.broadcast(flat, source, group=self._group, async_op=True)

    def _global_rank(self, rank: int) -> int:
        return rank if self._group is None else dist.get_global_rank(self._group, rank)

    def _refuse_missing_pull_back(self, *args) -> None:
        """Refuse a step of the optimizer that would leave the branches as they are.

        Raises:
            UserError: If a kernel has a gradient that was not pulled back.
        """
        for name, block in self.blocks.items():
            is_squeezed = isinstance(block, GeneratedConv2d) and block.mode == 'squeezed'
            if is_squeezed and block._parameters['weight'].grad is not None:
                raise UserError(
                    f'the gradient of {name} was not pulled back to its branches: call '
                    'training.step() in place of optimizer.step(), or training.pull_back() first'
                )

    def _refuse_partial_state(self, optimizer: Optimizer) -> None:
        if not self._is_consolidated:
            raise UserError(
                "the optimizer's state is spread over the processes: call "
                'SqueezedTraining.consolidate() in all of them first'
            )


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get('closure')
    return closure is not None and closure.default is inspect.Parameter.empty


def _may_be_trained(block: GeneratedConv2d) -> list[nn.Parameter]:
    """The parameters of a block that may be trained.

    For a block that is frozen as a whole these are all, because it may be trained later.
    """
    parameters = list(block.kernel.parameters())
    if block.mode == 'squeezed':
        return parameters
    return [p for p in parameters if p.requires_grad] or parameters


def _is_zero(optimizer: Optimizer) -> bool:
    if not dist.is_available():
        return False
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return isinstance(optimizer, ZeroRedundancyOptimizer)


def processes(group: dist.ProcessGroup | None = None) -> int:
    """The number of processes of a group; 0 if ``torch.distributed`` is not initialized."""
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 0


def share_out(blocks: dict[str, GeneratedConv2d], processes: int) -> dict[str, int]:
    """Choose the process that owns each block, so that the work is even.

    Args:
        blocks (dict[str, GeneratedConv2d]): The blocks by name, in the same order in every process.
        processes (int): The number of processes.

    Returns:
        dict[str, int]: The rank of each block's owner, by name.
    """
    works = {name: work(block) for name, block in blocks.items()}
    loads = [0] * processes
    owners = {}
    # The largest block first, each to the process that has the least work so far.
    for name in sorted(blocks, key=works.get, reverse=True):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += works[name]
    return {name: owners[name] for name in blocks}


def work(block: GeneratedConv2d) -> int:
    """The approximate cost of a block's step in floating-point operations."""
    total = OPERATIONS_PER_PARAMETER * sum(p.numel() for p in block.kernel.parameters())
    for part in _sums(block):
        for branch in part.children():
            factors = branch.factors()
            # Two convolutions in a row that both mix channels are a matrix product.
            if len(factors) == 2 and all(groups == branch.groups for _, groups in factors):
                (first, _), (second, _) = factors
                total += 6 * second.numel() * first.shape[1]
    return total


def write_sum(block: BranchSum, leaf: Tensor) -> None:
    """Write the kernel of a block to ``leaf``, (O, I/g, k, k) in any memory format."""
    add_up(_terms(block), kernel_rows(leaf.detach(), next(block.children()).groups))


def pull_block_back(
    block: GeneratedConv2d, gradient: Tensor, wanted: Sequence[nn.Parameter]
) -> None:
    """Add the gradients of a block's parameters, given that of its kernel.

    Args:
        block (GeneratedConv2d): Any block with a generated kernel.
        gradient (Tensor): The gradient of the kernel, (O, I/g, k, k) in any memory format.
        wanted (Sequence[nn.Parameter]): The parameters that get a gradient.
    """
    if not _sums(block):
        pull_formula_back(block, gradient, wanted)
    elif isinstance(block.kernel, BranchSum):
        pull_sum_back(block.kernel, gradient, wanted)
    else:
        for layer, own in zip(block.kernel, pull_chain_back(block.kernel, gradient)):
            pull_sum_back(layer, own, wanted)


def pull_chain_back(
    stem: DeepLinearStem, gradient: Tensor, layers: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """The gradients of a stem's 3x3 kernels, given that of the composed kernel.

    Args:
        stem (DeepLinearStem): The stem.
        gradient (Tensor): The gradient of the composed kernel, (O, I/g, k, k).
        layers (Sequence[Tensor], optional): The present 3x3 kernels of the stem, if they are known
            already. By default they are generated.
    """
    with torch.no_grad():
        layers = [layer() for layer in stem] if layers is None else layers
    layers = [layer.detach().requires_grad_() for layer in layers]
    with torch.enable_grad():
        composed = kernels.compose_chain(layers, stem.groups)
        return torch.autograd.grad(composed, layers, gradient)


def pull_sum_back(block: BranchSum, gradient: Tensor, wanted: Sequence[nn.Parameter]) -> None:
    """:func:`pull_block_back` for a sum of fast branches."""
    wanted = {id(parameter) for parameter in wanted}
    parameters = {name: p for name, p in named_tensors(block).items() if id(p) in wanted}
    if not parameters:
        return
    found = [torch.empty_like(parameter) for parameter in parameters.values()]
    groups = next(block.children()).groups
    outputs = terms_of(block, list(parameters), found)
    pull_back(_terms(block), kernel_rows(gradient, groups), outputs)
    for parameter, own in zip(parameters.values(), found):
        _add_gradient(parameter, own)


def pull_formula_back(
    block: GeneratedConv2d, gradient: Tensor, wanted: Sequence[nn.Parameter]
) -> None:
    """:func:`pull_block_back` for any block, by autograd."""
    names = {id(p): name for name, p in block.kernel.named_parameters()}
    leaves = {names[id(p)]: p.detach() for p in wanted}
    wide = torch.float32 if gradient.dtype in (torch.float16, torch.bfloat16) else gradient.dtype
    leaves = {name: p.to(wide).requires_grad_() for name, p in leaves.items()}
    others = {**dict(block.kernel.named_parameters()), **dict(block.kernel.named_buffers())}
    others = {n: t.detach().to(wide) for n, t in others.items() if n not in leaves}
    with torch.enable_grad():
        kernel = torch.func.functional_call(block.kernel, {**others, **leaves}, ())
        found = torch.autograd.grad(
            kernel, list(leaves.values()), gradient.to(wide), allow_unused=True
        )
    for parameter, own in zip(wanted, found):
        if own is not None:
            _add_gradient(parameter, own.to(parameter.dtype))


def _add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)


def _terms(block: BranchSum) -> Terms:
    tensors = named_tensors(block)
    return terms_of(block, list(tensors), [tensor.detach() for tensor in tensors.values()])


def _sums(block: GeneratedConv2d) -> list[BranchSum]:
    """The sums of branches that a block consists of; empty if not all of them are fast."""
    kernel = block.kernel
    parts = [kernel] if isinstance(kernel, BranchSum) else []
    parts = list(kernel) if isinstance(kernel, DeepLinearStem) else parts
    return parts if all(map(_is_plain, parts)) else []


def _is_plain(block: BranchSum) -> bool:
    """Whether a block's kernel can be computed directly from its parameters."""
    dtype = next(block.parameters()).dtype
    return is_fast(block) and dtype in (torch.float32, torch.float64)


def _is_all_wanted(block: BranchSum, wanted: Sequence[nn.Parameter]) -> bool:
    wanted = {id(parameter) for parameter in wanted}
    return all(id(p) in wanted and p.grad is None for p in block.parameters())


def _requires_grad(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _norm(gradients: list[Tensor], norm_type: float, like: Tensor) -> Tensor:
    """The norm of all gradients; of a type and on a device that every process agrees on."""
    where = dict(device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    if not gradients:
        return torch.zeros((), **where)
    norms = [torch.linalg.vector_norm(g, norm_type).to(**where) for g in gradients]
    return torch.linalg.vector_norm(torch.stack(norms), norm_type)


def _moves(value) -> bool:
    """Whether a value of an optimizer's state has to be on its parameter's device."""
    return isinstance(value, Tensor) and value.dim() > 0


def _on_cpu(state: dict) -> dict:
    return {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
