"""A backbone as a ``torch.fx`` graph, which torch's quantization works on."""

from __future__ import annotations

import copy

from torch import Tensor, fx, nn

from ...errors import UserError, first_line


def traced(backbone: nn.Module) -> fx.GraphModule:
    """A copy of a backbone as a graph; names of parameters, and its mode, stay as they are.

    Raises:
        UserError: If Python decides in it by the values or the size of the image.
    """
    backbone = copy.deepcopy(backbone)
    try:
        graph = fx.Tracer().trace(_OneImage(backbone))
    except (fx.proxy.TraceError, TypeError) as error:
        raise UserError(
            f'torch.fx cannot trace {type(backbone).__name__} ({first_line(error)}): set '
            'with_cp=False if it has it, or choose backend onnxruntime'
        ) from None
    for node in graph.nodes:
        if node.op in ('call_module', 'get_attr'):
            node.target = node.target.removeprefix('backbone.')
    return fx.GraphModule(backbone, graph, type(backbone).__name__)


class _OneImage(nn.Module):
    """Gives ``forward`` a signature: re-parameterised backbones take ``*args``."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor):
        return self.backbone(image)
