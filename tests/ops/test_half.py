"""Half precision: rounded once, not computed in; under autocast the same."""

import mmcv.ops
import pytest
import torch
from ops.both import HALF, OURS, ROUNDING, difference, random_boxes, random_rois, using
from ops.both import values_and_gradients as run

TYPES = pytest.mark.parametrize('half', HALF, ids=str)


def rois(maps):
    """Regions whose places have no rounding."""
    return ((random_rois(5, 2, 8) * 4).round() / 4).to(maps)


def focal(x):
    return mmcv.ops.sigmoid_focal_loss(
        x, torch.tensor([0, 3, 2, 1]).to(x.device), 2.0, 0.25, None, 'none'
    )


def attend(value, locations, weights):
    shapes, starts = (torch.tensor(t, device=value.device) for t in ([[4, 5]], [0]))
    return mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
        value, shapes, starts, locations, weights, 64
    )


CASES = {
    'RoIAlign': (lambda x: mmcv.ops.roi_align(x, rois(x), 3), [(2, 3, 8, 8)]),
    'RoIAlign of the maximum': (
        lambda x: mmcv.ops.roi_align(x, rois(x), 3, 1.0, 0, 'max'),
        [(2, 3, 8, 8)],
    ),
    'RoIPool': (lambda x: mmcv.ops.roi_pool(x, rois(x), 3), [(2, 3, 8, 8)]),
    'deformable 1': (
        lambda *t: mmcv.ops.deform_conv2d(*t, 1, 1),
        [(2, 4, 5, 5), (2, 18, 5, 5), (3, 4, 3, 3)],
    ),
    'deformable 2': (
        lambda *t: mmcv.ops.modulated_deform_conv2d(*t, 1, 1),
        [(2, 4, 5, 5), (2, 18, 5, 5), (2, 9, 5, 5), (3, 4, 3, 3), (3,)],
    ),
    'sigmoid focal loss': (focal, [(4, 3)]),
    'CARAFE': (lambda *t: mmcv.ops.carafe(*t, 3, 1, 2), [(1, 4, 3, 3), (1, 9, 6, 6)]),
    'deformable attention': (attend, [(1, 20, 2, 3), (1, 3, 2, 1, 4, 2), (1, 3, 2, 1, 4)]),
    'PSA mask': (mmcv.ops.PSAMask('collect', (3, 3)), [(1, 9, 3, 4)]),
}


def tensors_of(shapes, half):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(half) for shape in shapes]


@TYPES
@pytest.mark.parametrize('function, shapes', CASES.values(), ids=CASES)
def test_is_rounded_once(function, shapes, half):
    tensors = tensors_of(shapes, half)
    found = run(function, tensors, OURS)
    # The output's gradient is rounded before, too, to the same numbers: give both the rounded one.
    wanted = run(lambda *t: _Rounded.apply(function(*t), half), [t.float() for t in tensors], OURS)
    assert all(f.dtype == half for f in found)
    assert max(difference(f.float(), w) for f, w in zip(found, wanted)) <= HALF[half]


class _Rounded(torch.autograd.Function):
    """Rounds the gradient."""

    @staticmethod
    def forward(ctx, tensor, half):
        ctx.half = half
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(ctx.half).float(), None


@TYPES
@pytest.mark.parametrize('function, shapes', CASES.values(), ids=CASES)
def test_autocast_does_not_look_into_it(function, shapes, half):
    tensors = [t.float() for t in tensors_of(shapes, torch.float32)]

    def under_autocast(*args):
        with torch.autocast('cpu', half):
            return function(*args)

    found, wanted = run(under_autocast, tensors, OURS), run(function, tensors, OURS)
    assert max(difference(f, w) for f, w in zip(found, wanted)) <= ROUNDING


@TYPES
def test_a_layer_under_autocast(half):
    layer = mmcv.ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    with using(OURS):
        with torch.autocast('cpu', half):
            output = layer(torch.randn(2, 4, 5, 5))
        output.float().sum().backward()
    assert output.dtype == half
    assert all(
        p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters()
    )


@TYPES
def test_boxes(half):
    boxes, scores = random_boxes(30).to(half), torch.rand(30).to(half)
    kept = OURS.nms(boxes, scores, 0.5, 0)
    assert kept.tolist() == OURS.nms(boxes.float(), scores.float(), 0.5, 0).tolist()
    ious = boxes.new_zeros(30, 30)
    OURS.bbox_overlaps(boxes, boxes, ious, 0, False, 1)
    wanted = torch.zeros(30, 30)
    OURS.bbox_overlaps(boxes.float(), boxes.float(), wanted, 0, False, 1)
    assert difference(ious.float(), wanted) <= HALF[half]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('function, shapes', CASES.values(), ids=CASES)
def test_on_a_gpu(function, shapes):
    tensors = tensors_of(shapes, torch.float32)
    found = run(function, [t.cuda() for t in tensors], OURS)
    wanted = run(function, tensors, OURS)
    assert max(difference(f.cpu(), w) for f, w in zip(found, wanted)) <= 1e-5
