"""A classifier, detector or segmentor as a module from one tensor to tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ...errors import UserError


class TensorModel(nn.Module):
    """The network of an OpenMMLab model, without its preprocessing and postprocessing.

    ============  ===========================================================================
    model         outputs
    ============  ===========================================================================
    classifier    ``logits`` (N, classes)
    segmentor     ``logits`` (N, classes, h, w), at the resolution of the decode head
    single-stage  what ``bbox_head`` gives for each level, such as ``cls_score_p3`` (N, anchors
    detector      * classes, h, w) and ``bbox_pred_p3`` (N, anchors * 4, h, w): the number is
                  the logarithm to base 2 of the level's stride in pixels
    two-stage     ``feat_p2``, ... of the neck, and what ``rpn_head`` gives for each level, such
    detector      as ``rpn_cls_score_p2``; its RoI head runs on boxes, of which there are
                  none before proposals have been picked, and is left out
    backbone      any other module: ``output``, or ``output_0``, ``output_1``, ...
    ============  ===========================================================================

    The parts are the model's own modules, not copies.

    Args:
        model (nn.Module): A model of mmpretrain, mmdet or mmseg, or any module from an image to
            tensors. It is put into eval mode.
        full_size (bool): Whether a segmentor's logits are resized to the size of the image,
            bilinearly, as its ``predict`` does. Defaults to False.

    Attributes:
        kind (str): ``'classifier'``, ``'segmentor'``, ``'detector'``, ``'two-stage detector'`` or
            ``'module'``.

    Raises:
        UserError: If ``full_size`` is asked for and the model is no segmentor.
    """

    def __init__(self, model: nn.Module, full_size: bool = False):
        super().__init__()
        self.model = model
        self.kind = kind_of(model)
        self.full_size = full_size
        if full_size and self.kind != 'segmentor':
            raise UserError(f'full_size is of segmentors, this is a {self.kind}: leave it out')
        self.eval()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W), normalised, to the tensors that :meth:`output_names` names."""
        if self.kind == 'two-stage detector':
            feats = self.model.extract_feat(image)
            return tuple(tree_leaves([feats, self.model.rpn_head.forward(feats)]))
        outputs = tuple(tree_leaves(self.model(image)))
        if not self.full_size:
            return outputs
        align = self.model.align_corners
        size = image.shape[2:]
        return tuple(
            F.interpolate(logits, size, mode='bilinear', align_corners=align) for logits in outputs
        )

    def output_names(self, outputs: Sequence[Tensor]) -> list[str]:
        """Names for what :meth:`forward` gave, in its order."""
        if self.kind == 'detector':
            return head_names(self.model.bbox_head, len(outputs))
        if self.kind == 'two-stage detector':
            # The RPN has one pair of maps for each level of the neck.
            levels = len(outputs) // 3
            names = head_names(self.model.rpn_head, len(outputs) - levels)
            suffixes = [name.rpartition('_')[2] for name in names[:levels]]
            return [f'feat_{suffix}' for suffix in suffixes] + [f'rpn_{name}' for name in names]
        name = 'output' if self.kind == 'module' else 'logits'
        return [name] if len(outputs) == 1 else [f'{name}_{i}' for i in range(len(outputs))]


def kind_of(model: nn.Module) -> str:
    """What a model is, see :class:`TensorModel`; told by the heads it has."""

    def has(head: str) -> bool:
        return getattr(model, head, None) is not None  # SOLO has None for a box head

    if has('rpn_head') and hasattr(model, 'extract_feat'):
        return 'two-stage detector'
    if has('bbox_head'):
        return 'detector'
    if has('decode_head'):
        return 'segmentor'
    if getattr(model, 'with_head', False):
        return 'classifier'
    return 'module'


def head_names(head: nn.Module, count: int) -> list[str]:
    """The names of a dense head's ``count`` outputs, one kind after the other, level by level.

    mmdet's heads return lists with one tensor for each level. The first arguments of
    ``loss_by_feat`` are the same lists: ``cls_scores``, ``bbox_preds``, ``centernesses``, ...
    """
    strides = getattr(getattr(head, 'prior_generator', None), 'strides', None) or [None]
    levels = len(strides)
    arguments = list(inspect.signature(head.loss_by_feat).parameters)
    if count % levels or count // levels > len(arguments):
        return [f'output_{i}' for i in range(count)]
    kinds = [re.sub('(?<=ss)es$|s$', '', name) for name in arguments[: count // levels]]
    return [f'{kind}_{level_name(i, stride)}' for kind in kinds for i, stride in enumerate(strides)]


def level_name(index: int, stride: int | tuple[int, int] | None) -> str:
    """``p3`` for a stride of 8 pixels; the index where the stride is not one power of two."""
    if isinstance(stride, tuple):
        stride = stride[0] if stride[0] == stride[1] else None
    if stride and stride & (stride - 1) == 0:
        return f'p{stride.bit_length() - 1}'
    return str(index)
