"""Constant tensors of a module, which are computed from its arguments and in no state dict."""

from __future__ import annotations

from torch import Tensor, nn


class ConstantsMixin:
    """Holds constants as non-persistent buffers, and computes them again whenever a module moves.

    The constants are therefore right after ``to_empty`` and a strict ``load_state_dict`` of a
    module that was built on the meta device, after its ``load_state_dict(assign=True)``, and exact
    after a change of dtype back and forth. The mixin goes before ``nn.Module`` in the bases. A
    subclass calls :meth:`register_constants` at the end of its constructor.
    """

    def constants(self) -> dict[str, Tensor]:
        """The constants by name, on the CPU."""
        raise NotImplementedError

    def register_constants(self, like: Tensor) -> None:
        """Register the constants as buffers.

        Args:
            like (Tensor): A tensor with the dtype and device that the buffers get.
        """
        constants = self.constants()
        #: Their names.
        self.constant_names = tuple(constants)
        for name, constant in constants.items():
            self.register_buffer(name, constant.to(like), persistent=False)
        self.register_load_state_dict_post_hook(_leave_meta)

    def _apply(self, *args, **kwargs) -> nn.Module:
        super()._apply(*args, **kwargs)
        for name, constant in self.constants().items():
            self._buffers[name] = constant.to(self._buffers[name])
        return self


def _leave_meta(module: ConstantsMixin, incompatible_keys: object) -> None:
    """Follow the parameters, which ``load_state_dict(assign=True)`` replaces."""
    left = [name for name in module.constant_names if module._buffers[name].is_meta]
    parameter = next(module.parameters(), None)
    if left and parameter is not None and not parameter.is_meta:
        constants = module.constants()
        for name in left:
            dtype = module._buffers[name].dtype
            module._buffers[name] = constants[name].to(parameter.device, dtype)
