"""Equality with mmcv's compiled operators, through mmcv's own functions, where they can be loaded.

The CPU builds lack the losses, RoIPool, masked convolution, CARAFE and deformable attention:
test_references.py has those.
"""

import mmcv.ops
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.both import OURS, ROUNDING, difference, random_boxes, random_rois, using
from ops.both import values_and_gradients as run

#: A sample's place in its region is rounded in another order; times a map's slope of some units.
PLACES = 1e-5
FEW = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**16)


def assert_equal(function, tensors, compiled, tolerance=ROUNDING):
    """A function of mmcv has the same values and gradients over both forms."""
    found, wanted = run(function, tensors, OURS), run(function, tensors, compiled)
    assert len(found) == len(wanted)
    assert max(difference(f, w) for f, w in zip(found, wanted)) <= tolerance


def both(function, compiled):
    """What a function that takes nothing gives over ours and over the compiled ones."""
    results = []
    for extension in (OURS, compiled):
        with using(extension):
            results.append(function())
    return results


def make_scores(number, seed, ties):
    scores = torch.rand(number, generator=torch.Generator().manual_seed(seed + 1))
    return (scores * 8).round() / 8 if ties else scores


BOXES = {
    'random': random_boxes(40),
    'empty': torch.zeros(0, 4),
    'one': random_boxes(1),
    'the same': random_boxes(1).repeat(6, 1),
    'of no size': torch.tensor([[3.0, 3, 3, 3], [3, 3, 3, 3], [0, 0, 5, 5]]),
    'inside out': torch.tensor([[9.0, 9, 2, 2], [0, 0, 5, 5], [8, 8, 1, 3]]),
    # Their overlap is 0.6, which is not above a threshold of 0.6.
    'at the threshold': torch.tensor([[0.0, 0, 1, 1], [0, 0.25, 1, 1.25], [5, 5, 9, 9]]),
    'far out': random_boxes(30) + 1e5,
}


class TestNMS:
    @pytest.mark.parametrize('boxes', BOXES.values(), ids=BOXES)
    @pytest.mark.parametrize('offset', [0, 1])
    @pytest.mark.parametrize('threshold', [0.0, 0.3, 0.6, 0.7, 1.0])
    def test_edges(self, compiled, boxes, offset, threshold):
        scores = make_scores(len(boxes), 0, ties=True)
        found, wanted = both(lambda: mmcv.ops.nms(boxes, scores, threshold, offset), compiled)
        assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])

    @FEW
    @given(
        number=st.integers(1, 60),
        seed=SEEDS,
        threshold=st.floats(0.05, 0.95),
        offset=st.integers(0, 1),
        ties=st.booleans(),
    )
    def test_any(self, compiled, number, seed, threshold, offset, ties):
        boxes, scores = random_boxes(number, seed), make_scores(number, seed, ties)
        found, wanted = both(lambda: mmcv.ops.nms(boxes, scores, threshold, offset), compiled)
        assert found[1].tolist() == wanted[1].tolist()

    @pytest.mark.parametrize('agnostic', [False, True])
    @pytest.mark.parametrize('split', [10000, 10])
    @pytest.mark.parametrize('kind', ['nms', 'soft_nms'])
    def test_batched(self, compiled, agnostic, split, kind):
        boxes, scores = random_boxes(50), make_scores(50, 0, ties=False)
        classes = torch.arange(50) % 3
        config = dict(type=kind, iou_threshold=0.4, split_thr=split)
        found, wanted = both(
            lambda: mmcv.ops.batched_nms(boxes, scores, classes, config, agnostic), compiled
        )
        assert found[1].tolist() == wanted[1].tolist()
        assert difference(found[0], wanted[0]) <= ROUNDING

    def test_score_threshold_and_max_num(self, compiled):
        boxes, scores = random_boxes(50), make_scores(50, 0, ties=False)
        options = dict(iou_threshold=0.5, score_threshold=0.3, max_num=7)
        found, wanted = both(lambda: mmcv.ops.nms(boxes, scores, **options), compiled)
        assert len(found[1]) == 7 and torch.equal(found[1], wanted[1])

    def test_arrays(self, compiled):
        boxes, scores = random_boxes(20).numpy(), make_scores(20, 0, ties=False).numpy()
        found, wanted = both(lambda: mmcv.ops.nms(boxes, scores, 0.5), compiled)
        assert np.array_equal(found[1], wanted[1])


class TestSoftNMS:
    @FEW
    @given(
        number=st.integers(0, 30),
        seed=SEEDS,
        method=st.sampled_from(['naive', 'linear', 'gaussian']),
        offset=st.integers(0, 1),
        ties=st.booleans(),
        least=st.sampled_from([1e-3, 0.05, 0.5]),
    )
    def test_any(self, compiled, number, seed, method, offset, ties, least):
        boxes, scores = random_boxes(number, seed), make_scores(number, seed, ties)
        options = dict(method=method, offset=offset, min_score=least, iou_threshold=0.3)
        found, wanted = both(lambda: mmcv.ops.soft_nms(boxes, scores, **options), compiled)
        assert found[1].tolist() == wanted[1].tolist()
        assert difference(found[0], wanted[0]) <= ROUNDING

    @pytest.mark.parametrize('boxes', BOXES.values(), ids=BOXES)
    def test_edges(self, compiled, boxes):
        scores = make_scores(len(boxes), 0, ties=True)
        found, wanted = both(lambda: mmcv.ops.soft_nms(boxes, scores), compiled)
        assert found[1].tolist() == wanted[1].tolist()


@pytest.mark.parametrize('boxes', BOXES.values(), ids=BOXES)
@pytest.mark.parametrize('threshold', [0.1, 0.6])
def test_nms_match(compiled, boxes, threshold):
    dets = torch.cat([boxes, make_scores(len(boxes), 0, ties=True)[:, None]], 1)
    found, wanted = both(lambda: mmcv.ops.nms_match(dets, threshold), compiled)
    assert [g.tolist() for g in found] == [g.tolist() for g in wanted]


@pytest.mark.parametrize('boxes', BOXES.values(), ids=BOXES)
@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
def test_bbox_overlaps(compiled, boxes, mode, aligned, offset):
    other = boxes.flip(0)
    found, wanted = both(
        lambda: mmcv.ops.bbox_overlaps(boxes, other, mode, aligned, offset), compiled
    )
    assert torch.equal(found.isnan(), wanted.isnan())
    assert difference(found.nan_to_num(), wanted.nan_to_num()) <= ROUNDING


class TestRoIAlign:
    @FEW
    @given(
        number=st.integers(0, 9),
        channels=st.integers(1, 3),
        height=st.integers(1, 12),
        width=st.integers(1, 12),
        out=st.tuples(st.integers(1, 5), st.integers(1, 5)),
        ratio=st.integers(0, 3),
        scale=st.sampled_from([1.0, 0.25, 0.3]),
        mode=st.sampled_from(['avg', 'max']),
        aligned=st.booleans(),
        seed=SEEDS,
    )
    def test_any(
        self, compiled, number, channels, height, width, out, ratio, scale, mode, aligned, seed
    ):
        maps = torch.randn(
            2, channels, height, width, generator=torch.Generator().manual_seed(seed)
        )
        rois = random_rois(number, 2, max(height, width) / scale, seed)

        def align(maps):
            return mmcv.ops.roi_align(maps, rois, out, scale, ratio, mode, aligned)

        assert_equal(align, [maps], compiled, tolerance=PLACES)

    @pytest.mark.parametrize('aligned', [False, True])
    def test_a_region_of_no_size(self, compiled, aligned):
        rois = torch.tensor([[0.0, 3, 3, 3, 3], [1, 2, 2, 2, 6]])
        maps = torch.randn(2, 3, 8, 8)

        def align(maps):
            return mmcv.ops.roi_align(maps, rois, 2, 1.0, 0, 'avg', aligned)

        assert_equal(align, [maps], compiled)

    def test_gradients_in_other_layouts(self, compiled):
        maps, rois = torch.randn(2, 3, 8, 8), random_rois(4, 2, 8)

        def align(maps):
            return mmcv.ops.roi_align(maps, rois, 3).permute(0, 2, 3, 1)

        assert_equal(align, [maps], compiled)
        assert_equal(
            lambda maps: mmcv.ops.roi_align(maps.contiguous(), rois, 3),
            [maps.to(memory_format=torch.channels_last)],
            compiled,
        )


#: stride, padding, dilation, groups, deform_groups, kernel, (h, w)
GEOMETRIES = [
    (1, 1, 1, 1, 1, (3, 3), (7, 9)),
    (2, 1, 1, 1, 1, (3, 3), (7, 9)),
    (1, 2, 2, 2, 1, (3, 3), (8, 8)),
    (1, 1, 1, 1, 4, (3, 3), (6, 6)),
    ((2, 1), (0, 2), (1, 2), 2, 2, (3, 5), (9, 11)),
    (1, 0, 1, 4, 2, (1, 1), (4, 5)),
    (1, 3, 1, 1, 1, (3, 3), (2, 2)),
]
OFFSETS = {
    'random': lambda shape: torch.randn(shape) * 2,
    # The first step of a network: with padding, samples lie one pixel outside exactly.
    'zero': torch.zeros,
    'whole': lambda shape: torch.randint(-3, 4, shape).float(),
    'far out': lambda shape: torch.randn(shape) * 100,
}


class TestDeformableConvolution:
    @pytest.mark.parametrize('geometry', GEOMETRIES, ids=str)
    @pytest.mark.parametrize('offsets', OFFSETS.values(), ids=OFFSETS)
    @pytest.mark.parametrize('version', ['v1', 'v2', 'v2 with bias'])
    def test_any(self, compiled, geometry, offsets, version):
        torch.manual_seed(0)
        *how, kernel, size = geometry
        if version == 'v1' and size < kernel:
            pytest.skip('the compiled version 1 refuses a map smaller than the kernel')
        groups, deform_groups = how[3:]
        maps, weight = torch.randn(2, 8, *size), torch.randn(4, 8 // groups, *kernel)
        out = torch.nn.functional.conv2d(maps, weight, None, *how[:4]).shape[2:]
        taps = deform_groups * kernel[0] * kernel[1]
        offset, mask = offsets((2, 2 * taps, *out)), torch.rand(2, taps, *out)
        if version == 'v1':
            function, tensors = mmcv.ops.deform_conv2d, [maps, offset, weight]
        else:
            function, tensors = mmcv.ops.modulated_deform_conv2d, [maps, offset, mask, weight]
            tensors += [torch.randn(4)] if version == 'v2 with bias' else []
            how = how if version == 'v2 with bias' else [None, *how]
        assert_equal(lambda *args: function(*args, *how), tensors, compiled)

    @pytest.mark.parametrize('name', ['DCN', 'DCNv2'])
    def test_layers(self, compiled, name):
        torch.manual_seed(0)
        layer = mmcv.ops.deform_conv.MODELS.get(name)(4, 6, 3, padding=1)
        assert_equal(layer, [torch.randn(2, 4, 5, 5)], compiled)

    def test_a_map_smaller_than_the_kernel(self, compiled):
        layer = mmcv.ops.DeformConv2d(2, 3, 3)
        tensors = [torch.randn(1, 2, 2, 2), torch.randn(1, 18, 1, 1)]
        layer.padding = (1, 1)
        tensors[1] = torch.randn(1, 18, 2, 2)
        assert_equal(layer, tensors, compiled)


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('size', [(4, 5), (1, 1), (7, 3)])
@pytest.mark.parametrize('window', [(3, 3), (9, 7), (1, 5)])
def test_psa_mask(compiled, kind, size, window):
    maps = torch.randn(2, window[0] * window[1], *size)
    assert_equal(mmcv.ops.PSAMask(kind, window), [maps], compiled, tolerance=0)
