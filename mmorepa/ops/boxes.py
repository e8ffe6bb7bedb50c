"""Boxes (x1, y1, x2, y2): which overlap, and which stay.

``offset`` is 0, or 1 where a box from 3 to 5 is three wide.
"""

import torch
import torchvision
from torch import Tensor

from .precision import full, operator, single


@operator
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no better one overlaps, best first.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.
        iou_threshold: a box goes where it overlaps a better one by more.
        offset: 0 or 1.
    """
    boxes, scores = full(boxes, scores)
    # Sorted as the compiled operator sorts, which decides between equal scores.
    scores, order = scores.sort(descending=True)
    boxes = boxes[order] + boxes.new_tensor([0, 0, offset, offset])
    return order[torchvision.ops.nms(boxes, scores, single(iou_threshold))]


@operator
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., arXiv 1704.04503): what overlaps a better box loses score.

    Args:
        boxes: ``(n, 4)``.
        scores: ``(n,)``.
        dets: ``(n, 5)``, written to: the m boxes that stay and their scores, best first.
        iou_threshold: for methods 0 and 1.
        sigma: for method 2.
        min_score: a box with less goes.
        method: 0 takes all of the score, 1 the overlap's share, 2 by a Gaussian of the overlap.
        offset: 0 or 1.

    Returns:
        Tensor: Indices of the boxes that stay, ``(m,)``.
    """
    points, left = full(boxes, scores.clone())
    iou_threshold, min_score = single(iou_threshold), single(min_score)
    rest = torch.arange(len(points), device=points.device)
    kept = []
    while len(rest):
        best = left[rest].argmax()
        chosen = rest[best].clone()
        dets[len(kept)] = torch.cat([points[chosen], left[chosen, None]])
        kept.append(chosen)
        # The order decides between equal scores: the first takes the place of the best, and
        # below, the last ones take the places of those that go.
        rest[best] = rest[0]
        rest = rest[1:]
        overlap = _overlaps(points[chosen], points[rest], offset)
        if method == 2:
            left[rest] *= torch.exp(-overlap.square() / sigma)
        else:
            lost = torch.ones_like(overlap) if method == 0 else overlap
            left[rest] *= torch.where(overlap >= iou_threshold, 1 - lost, 1)
        stays = ~(left[rest] < min_score)
        front, back = rest[: stays.sum()], rest[stays.sum() :]
        front[~stays[: len(front)]] = back[stays[len(front) :]].flip(0)
        rest = front
    return torch.stack(kept) if kept else rest


@operator
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes: each that stays, and behind it those that went because of it.

    Args:
        dets: boxes and scores, ``(n, 5)``.
        iou_threshold: a box goes where it overlaps a better one by as much.

    Returns:
        list: Groups of indices, best first.
    """
    (dets,) = full(dets)
    iou_threshold = single(iou_threshold)
    rest = dets[:, 4].sort(descending=True).indices
    groups = []
    while len(rest):
        goes = _overlaps(dets[rest[0], :4], dets[rest, :4]) >= iou_threshold
        goes[0] = True
        groups.append([int(rest[0]), *rest[1:][goes[1:]].tolist()])
        rest = rest[~goes]
    return groups


@operator
def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int
) -> None:
    """The overlaps of boxes of one list with those of another.

    Args:
        bboxes1: ``(m, 4)``.
        bboxes2: ``(n, 4)``.
        ious: written to, ``(m, n)``; ``(m,)`` where aligned.
        mode: 0 divides the intersection by the union, 1 by the first box.
        aligned: whether the lists are compared box by box.
        offset: 0 or 1.
    """
    bboxes1, bboxes2 = full(bboxes1, bboxes2)
    first = bboxes1 if aligned else bboxes1[:, None]
    ious.copy_(_overlaps(first, bboxes2, offset, of_first=mode == 1))


def _overlaps(first, second, offset=0, of_first=False):
    def area(boxes):
        return (boxes[..., 2:] - boxes[..., :2] + offset).prod(-1)

    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    inside = (high - low + offset).clamp(min=0).prod(-1)
    return inside / (area(first) if of_first else area(first) + area(second) - inside)
