"""CARAFE (Wang et al., arXiv 1905.02188): upsampling with a kernel for each pixel of the output.

Shapes: feature maps ``(images, channels, h, w)``, masks ``(images, groups * k * k, s * h, s * w)``,
output ``(images, channels, s * h, s * w)``, with ``k = kernel_size`` and ``s = scale_factor``. The
names that begin with r are room for the compiled operators.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full, operator


@operator
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size, group_size, scale_factor
) -> None:
    """The upsampled maps, written to ``output``."""
    output.copy_(_carafe(*full(features, masks), kernel_size, group_size, scale_factor))


@operator
def carafe_naive_backward(
    grad_output: Tensor,
    features: Tensor,
    masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    kernel_size,
    group_size,
    scale_factor,
) -> None:
    """The gradients with respect to the feature maps and the masks."""
    gradient, *leaves = full(grad_output, features, masks)
    with torch.enable_grad():
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        output = _carafe(*leaves, kernel_size, group_size, scale_factor)
    for room, part in zip((grad_input, grad_masks), torch.autograd.grad(output, leaves, gradient)):
        room.copy_(part)


@operator
def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput, rmasks, output: Tensor, **sizes
) -> None:
    """The upsampled maps; the feature maps go to ``rfeatures``, for the way back."""
    carafe_naive_forward(features, masks, output, **sizes)
    rfeatures.copy_(features)


@operator
def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output,
    rgrad_input_hs,
    rgrad_input,
    rgrad_masks,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes,
) -> None:
    """The gradients with respect to the feature maps and the masks."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **sizes)


def _carafe(features, masks, kernel_size, group_size, scale_factor):
    n, _, h, w = features.shape
    s, area = scale_factor, kernel_size**2
    around = F.unfold(features, kernel_size, padding=kernel_size // 2)
    around = around.view(n, group_size, -1, area, h, w)
    masks = masks.view(n, group_size, area, h, s, w, s)
    return torch.einsum('ngckhw,ngkhiwj->ngchiwj', around, masks).reshape(n, -1, s * h, s * w)
