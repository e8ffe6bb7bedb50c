"""What modules do with the modules below them, as torch.fx sees it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ..reparam import ReparamConv2d


class Calls(NamedTuple):
    """What one forward pass of a module does.

    Attributes:
        nodes (list[fx.Node]): Its operations. Modules below it are called, and their parameters
            read, by their names in it. ``meta`` has the ``shape`` of a tensor that was computed
            without the input, and says of an output that an attribute keeps that it ``is_kept``.
        is_usual (bool): Whether all flags of ``forward`` are at their defaults.
    """

    nodes: list[fx.Node]
    is_usual: bool

    def reaches_into(self, prefix: str) -> bool:
        """Whether something below a name is used by itself."""
        return any(str(node.target).startswith(prefix) for node in self.nodes)


def calls_of(modules: Iterable[nn.Module]) -> dict[int, list[Calls]]:
    """What modules do in eval and train mode, and with each flag of ``forward`` changed.

    All are traced at once: preparing torch.fx takes longer than a module's own code.

    Args:
        modules (Iterable[nn.Module]): The modules.

    Returns:
        dict[int, list[Calls]]: By the id of each module. What depends on the input cannot be
        traced and is not there, nor what an ``nn.Sequential`` does, which is known.
    """
    runs = {id(module): list(_runs(module)) for module in modules}
    tracer = _Tracer()

    def trace() -> None:
        for key, planned in runs.items():
            found = [tracer.run(*run) for run in planned]
            runs[key] = [call for call in found if call is not None]

    tracer.trace(trace)
    return runs


def _runs(module: nn.Module) -> Iterable[tuple]:
    """The forward passes to look at: the arguments of :meth:`_Tracer.run`."""
    if type(module) is nn.Sequential:
        return
    try:
        arguments = inspect.signature(type(module).forward).parameters.values()
    except (TypeError, ValueError):
        return
    arguments = list(arguments)[1:]
    flags = [a.name for a in arguments if isinstance(a.default, bool)]
    for training in (False, True) if _reads_mode(module) else (module.training,):
        for changed in (None, *flags):
            yield module, arguments, changed, training


def _reads_mode(module: nn.Module) -> bool:
    """Whether the code of a module's class asks for ``training``."""
    codes = [
        function.__code__
        for kind in type(module).__mro__
        if kind not in nn.Module.__mro__
        for function in vars(kind).values()
        if inspect.isfunction(function)
    ]
    while codes:
        code = codes.pop()
        if 'training' in code.co_names:
            return True
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    return False


class _Tracer(fx.Tracer):
    """Traces modules down to the calls of those below them; a block's weight is computed."""

    def __init__(self):
        super().__init__()
        #: Of the module that is traced: the names of what it has, by id, and its operations.
        self._modules: dict[int, str] = {}
        self._tensors: dict[int, str] = {}
        self._nodes: list[fx.Node] = []

    def run(
        self,
        module: nn.Module,
        arguments: list[inspect.Parameter],
        changed: str | None,
        training: bool,
    ) -> Calls | None:
        """Trace one forward pass.

        Args:
            module (nn.Module): The module.
            arguments (list[inspect.Parameter]): The arguments of its ``forward``.
            changed (str, optional): The flag that does not have its default.
            training (bool): The mode.

        Returns:
            Calls: What it does, None if that cannot be traced.
        """
        blocks = [child for child in module.children() if isinstance(child, ReparamConv2d)]
        inside = {id(part) for block in blocks for part in block.modules() if part is not block}
        named = list(module.named_modules())
        named = [(name, part) for name, part in named if id(part) not in inside]
        self._modules = {id(part): name for name, part in named}
        # A forward pass may write to buffers, for example count steps.
        buffers = [(part, dict(part._buffers)) for _, part in named]
        for part, own in buffers:
            part._buffers.update({k: b.clone() for k, b in own.items() if b is not None})
        self._tensors = {
            id(tensor): f'{name}.{key}'.lstrip('.')
            for name, part in named
            for key, tensor in (*part._parameters.items(), *part._buffers.items())
        }
        self._nodes = []
        attributes = dict(vars(module))
        try:
            module.training = training
            given, options = [], {}
            for argument in arguments:
                if argument.kind is argument.VAR_KEYWORD:
                    continue
                value = argument.default
                if value is argument.empty:
                    value = self.create_proxy('placeholder', argument.name, (), {})
                elif argument.name == changed:
                    value = not value
                if argument.kind is argument.KEYWORD_ONLY:
                    options[argument.name] = value
                else:
                    given.append(value)
            with torch.random.fork_rng(devices=[]):
                type(module).forward(module, *given, **options)
            for value in vars(module).values():
                if isinstance(value, fx.Proxy):  # for whoever reads the attribute
                    value.node.meta['is_kept'] = True
        except Exception:  # of the module's own code, which was not written for this
            return None
        finally:
            for part, own in buffers:
                part._buffers.clear()
                part._buffers.update(own)
            # What the module keeps of its input in an attribute.
            vars(module).update(attributes)
            for name in vars(module).keys() - attributes.keys():
                delattr(module, name)
        for node in self._nodes:
            if node.op == 'get_attr' and hasattr(self.root, node.target):
                node.meta['shape'] = getattr(self.root, node.target).shape
        return Calls(self._nodes, changed is None)

    def create_node(self, *args, **kwargs) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self._nodes.append(node)
        return node

    def call_module(self, module: nn.Module, forward, args: tuple, kwargs: dict) -> object:
        if id(module) not in self._modules:
            return forward(*args, **kwargs)
        return self.create_proxy('call_module', self._modules[id(module)], args, kwargs)

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict) -> object:
        if isinstance(attr_val, nn.Parameter) and id(attr_val) in self._tensors:
            return self.create_proxy('get_attr', self._tensors[id(attr_val)], (), {})
        return attr_val

    def create_arg(self, a: object) -> object:
        names = self._tensors if isinstance(a, Tensor) else self._modules
        if isinstance(a, (Tensor, nn.Module)) and id(a) in names:
            return self.create_node('get_attr', names[id(a)], (), {})
        return super().create_arg(a)
