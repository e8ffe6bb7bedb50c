"""Focal losses (Lin et al., arXiv 1708.02002) and their gradients.

``target`` has the class of each of n samples; one that is no class is background.  ``weight`` has a
factor a class, or is empty; background has 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full, operator


@operator
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The loss of each class of its own.

    Args:
        input: logits, ``(n, classes)``.
        target: ``(n,)``.
        weight: ``(classes,)`` or empty.
        output: written to, like the logits.
        gamma: the power of focusing.
        alpha: the share of what is of the class; 1 - alpha that of what is not.
    """
    x, weight = full(input, weight)
    p, q, log_p, log_q = x.sigmoid(), (-x).sigmoid(), F.logsigmoid(x), F.logsigmoid(-x)
    loss = torch.where(
        _is_class(target, x), alpha * q.pow(gamma) * log_p, (1 - alpha) * p.pow(gamma) * log_q
    )
    output.copy_(-loss * _factors(weight, target)[:, None])


@operator
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of each loss by its logit, written to ``grad_input``."""
    x, weight = full(input, weight)
    p, q, log_p, log_q = x.sigmoid(), (-x).sigmoid(), F.logsigmoid(x), F.logsigmoid(-x)
    slope = torch.where(
        _is_class(target, x),
        alpha * q.pow(gamma) * (gamma * p * log_p - q),
        (1 - alpha) * p.pow(gamma) * (p - gamma * q * log_q),
    )
    grad_input.copy_(slope * _factors(weight, target)[:, None])


@operator
def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The loss of each sample, 0 for background.

    Args:
        softmax: probabilities, ``(n, classes)``.
        target: ``(n,)``.
        weight: ``(classes,)`` or empty.
        output: written to, ``(n,)``.
        gamma: the power of focusing.
        alpha: a factor.
    """
    softmax, weight = full(softmax, weight)
    p, log_p = _of_the_target(softmax, target)
    output.copy_(-alpha * (1 - p).pow(gamma) * log_p * _factors(weight, target))


@operator
def softmax_focal_loss_backward(
    softmax: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """The derivative of each loss by the logits, written to ``grad_input``.

    ``buff``, ``(n,)``, is written to as well: the derivative by the logarithm of the probability.
    """
    softmax, weight = full(softmax, weight)
    p, log_p = _of_the_target(softmax, target)
    q = 1 - p
    slope = alpha * (gamma * q.pow(gamma - 1) * p * log_p - q.pow(gamma))
    # Background has no slope, where a power of 1 - p may be infinite.
    known = _is_class(target, softmax).any(1)
    slope = torch.where(known, slope * _factors(weight, target), 0)
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_is_class(target, softmax).to(softmax) - softmax))


def _is_class(target, scores):
    return target[:, None] == torch.arange(scores.shape[1], device=scores.device)


def _of_the_target(softmax, target):
    """The probability of the target and its logarithm; those of 1 for background."""
    p = torch.where(_is_class(target, softmax), softmax, 0).sum(1)
    p = torch.where(_is_class(target, softmax).any(1), p, 1)
    return p, p.clamp(min=torch.finfo(p.dtype).tiny).log()


def _factors(weight, target):
    if not len(weight):
        return torch.ones_like(target, dtype=weight.dtype)
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight[target.where(known, 0)], 1)
