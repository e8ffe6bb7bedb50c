"""The operators against plain torch in float64, numeric slopes, and cases by hand."""

import math

import mmcv.ops
import pytest
import torch
import torch.nn.functional as F
from ops.both import OURS, difference, random_rois, using
from ops.both import values_and_gradients as run
from torch.autograd import gradcheck

#: Both sides in float64; only sums are ordered differently.
EXACT = 1e-12
#: Samples must not lie on a kink of the interpolation, where slopes by difference mean nothing.
OFF_KINKS = 0.05


@pytest.fixture(autouse=True)
def over_ours():
    torch.manual_seed(0)
    with using(OURS):
        yield


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def off_kinks(offsets):
    """Offsets moved to where whole numbers are not near."""
    part = offsets - offsets.floor()
    return offsets.floor() + part.clamp(OFF_KINKS, 1 - OFF_KINKS)


def leaf(tensor):
    return tensor.clone().requires_grad_()


def bilinear(maps, y, x):
    """Values of ``(channels, h, w)`` at places; nothing lies outside of the map."""
    h, w = maps.shape[1:]
    total = maps.new_zeros(len(maps), *y.shape)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            values = maps[:, row.clamp(0, h - 1).long(), column.clamp(0, w - 1).long()]
            total += values * inside * (1 - (y - row).abs()) * (1 - (x - column).abs())
    return total


def deformed(maps, offset, mask, weight, stride, padding, dilation, groups, deform_groups):
    """Deformable convolution as its paper states it: sample, mask, sum up."""
    out, per_group, kh, kw = weight.shape
    h, w = offset.shape[2:]
    offset = offset.view(len(maps), deform_groups, kh, kw, 2, h, w)
    mask = mask.view(len(maps), deform_groups, kh, kw, h, w)
    rows = []
    for n in range(len(maps)):
        parts = maps[n].chunk(deform_groups)
        columns = maps.new_zeros(maps.shape[1], kh, kw, h, w)
        for i in range(kh):
            for j in range(kw):
                y = torch.arange(h)[:, None] * stride - padding + i * dilation
                x = torch.arange(w) * stride - padding + j * dilation
                sampled = [
                    bilinear(part, y + offset[n, d, i, j, 0], x + offset[n, d, i, j, 1])
                    * mask[n, d, i, j]
                    for d, part in enumerate(parts)
                ]
                columns[:, i, j] = torch.cat(sampled)
        columns = columns.view(groups, per_group, kh, kw, h, w)
        kernels = weight.view(groups, -1, per_group, kh, kw)
        rows.append(torch.einsum('gcijhw,gocij->gohw', columns, kernels).flatten(0, 1))
    return torch.stack(rows)


class TestDeformableConvolution:
    def tensors(self, groups=2, deform_groups=2):
        return [
            double(2, 4, 5, 6),
            off_kinks(double(2, 18 * deform_groups, 3, 3) * 2),
            torch.rand(2, 9 * deform_groups, 3, 3, dtype=torch.float64),
            double(4, 4 // groups, 3, 3),
        ]

    HOW = (2, 1, 1, 2, 2)

    def test_version_2(self):
        maps, offset, mask, weight = self.tensors()
        found = mmcv.ops.modulated_deform_conv2d(maps, offset, mask, weight, None, *self.HOW)
        wanted = deformed(maps, offset, mask, weight, *self.HOW)
        assert difference(found, wanted) <= EXACT

    def test_version_1(self):
        maps, offset, mask, weight = self.tensors()
        found = mmcv.ops.deform_conv2d(maps, offset, weight, *self.HOW)
        wanted = deformed(maps, offset, torch.ones_like(mask), weight, *self.HOW)
        assert difference(found, wanted) <= EXACT

    def test_offsets_of_0_are_a_convolution(self):
        maps, weight, bias = double(1, 4, 5, 5), double(3, 4, 3, 3), double(3)
        offset, mask = maps.new_zeros(1, 18, 5, 5), maps.new_ones(1, 9, 5, 5)
        found = mmcv.ops.modulated_deform_conv2d(maps, offset, mask, weight, bias, 1, 1)
        assert difference(found, F.conv2d(maps, weight, bias, 1, 1)) <= EXACT

    def test_slopes_of_version_2(self):
        tensors = [*map(leaf, self.tensors()), leaf(double(4))]
        assert gradcheck(lambda *t: mmcv.ops.modulated_deform_conv2d(*t, *self.HOW), tensors)

    def test_slopes_of_version_1(self):
        maps, offset, _, weight = self.tensors()
        tensors = [leaf(maps), leaf(offset), leaf(weight)]
        assert gradcheck(lambda *t: mmcv.ops.deform_conv2d(*t, *self.HOW), tensors)

    def test_one_pixel_outside_has_no_slope(self):
        maps = torch.ones(1, 1, 1, 1)
        offset = torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1)
        gradients = run(
            lambda *t: mmcv.ops.deform_conv2d(*t), [maps, offset, torch.ones(1, 1, 1, 1)], OURS
        )[1:]
        assert all(g.abs().max() == 0 for g in gradients)


class TestRoIAlign:
    def test_an_even_map_keeps_its_value(self):
        maps = torch.full((1, 1, 8, 8), 3.0)
        rois = torch.tensor([[0.0, 1, 1, 6, 6]])
        for mode in ('avg', 'max'):
            assert torch.allclose(
                mmcv.ops.roi_align(maps, rois, 2, 1.0, 2, mode), torch.tensor(3.0)
            )

    @pytest.mark.parametrize('ratio', [0, 2])
    def test_a_ramp_by_hand(self, ratio):
        maps = torch.arange(8.0).expand(1, 1, 8, 8)
        rois = torch.tensor([[0.0, 1, 1, 5, 5]])  # aligned: from 0.5 to 4.5 in pixels' middles
        average = mmcv.ops.roi_align(maps, rois, (1, 2), 1.0, ratio, 'avg')
        largest = mmcv.ops.roi_align(maps, rois, (1, 2), 1.0, ratio, 'max')
        assert average.tolist() == [[[[1.5, 3.5]]]]
        assert largest.tolist() == [[[[2.0, 4.0]]]]

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    @pytest.mark.parametrize('ratio', [0, 2])
    @pytest.mark.parametrize('aligned', [False, True])
    def test_slopes(self, mode, ratio, aligned):
        rois = random_rois(3, 2, 8.0).double()
        maps = leaf(double(2, 2, 6, 7))
        assert gradcheck(
            lambda maps: mmcv.ops.roi_align(maps, rois, (2, 3), 0.8, ratio, mode, aligned), [maps]
        )

    def test_the_maximum_of_no_size_is_the_corner(self):
        maps = torch.arange(8.0).expand(1, 1, 8, 8)
        rois = torch.tensor([[0.0, 3.5, 3.5, 3.5, 3.5]])
        assert mmcv.ops.roi_align(maps, rois, 1, 1.0, 0, 'max').item() == 3

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_no_regions(self, mode):
        maps = torch.randn(1, 2, 4, 4)
        found = run(
            lambda maps: mmcv.ops.roi_align(maps, torch.zeros(0, 5), 3, 1.0, 0, mode), [maps], OURS
        )
        assert found[0].shape == (0, 2, 3, 3) and found[1].abs().max() == 0


def pooled(maps, rois, out, scale):
    """RoIPool bin by bin: from the floor of a bin's start to the ceiling of its end."""
    rows = []
    for roi in rois:
        image = maps[int(roi[0])]
        x1, y1 = (roi[1:3] * scale).tolist()
        x2, y2 = ((roi[3:] + 1) * scale).tolist()
        cells = image.new_zeros(len(image), out, out)
        for i in range(out):
            for j in range(out):
                step_y, step_x = (y2 - y1) / out, (x2 - x1) / out
                top, left = math.floor(i * step_y + y1), math.floor(j * step_x + x1)
                bottom = math.ceil((i + 1) * step_y + y1)
                right = math.ceil((j + 1) * step_x + x1)
                cell = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
                if cell.numel() and x2 > x1 and y2 > y1:
                    cells[:, i, j] = cell.amax((1, 2))
        rows.append(cells)
    return torch.stack(rows)


class TestRoIPool:
    @pytest.mark.parametrize('seed', range(8))
    @pytest.mark.parametrize('scale', [1.0, 0.3])
    def test_any(self, seed, scale):
        maps, rois = double(2, 3, 9, 7), random_rois(6, 2, 12.0 / scale, seed).double()
        found = run(lambda m: mmcv.ops.roi_pool(m, rois, 3, scale), [maps], OURS)
        above = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(9))
        wanted = leaf(maps)
        output = pooled(wanted, rois, 3, scale)
        assert torch.equal(found[0], output)
        (gradient,) = torch.autograd.grad(output, wanted, above.double())
        assert difference(found[1], gradient) <= EXACT

    def test_an_inside_out_region_is_nothing(self):
        maps = torch.ones(1, 1, 4, 4)
        rois = torch.tensor([[0.0, 3, 3, 1, 1]])
        output, gradient = run(lambda m: mmcv.ops.roi_pool(m, rois, 2, 1.0), [maps], OURS)
        assert output.abs().max() == 0 and gradient.abs().max() == 0

    def test_no_regions(self):
        maps = torch.randn(1, 2, 4, 4)
        found = run(lambda m: mmcv.ops.roi_pool(m, torch.zeros(0, 5), 3, 1.0), [maps], OURS)
        assert found[0].shape == (0, 2, 3, 3) and found[1].abs().max() == 0


class TestSigmoidFocalLoss:
    TARGET = torch.tensor([0, 2, 3, 1, 3])  # 3 is background

    def test_by_hand(self):
        # p = 1/2: alpha (1/2)^2 log 2 for the class, (1 - alpha) of that for the other.
        loss = mmcv.ops.sigmoid_focal_loss(
            torch.zeros(1, 2), torch.tensor([0]), 2.0, 0.25, None, 'none'
        )
        assert loss[0].tolist() == pytest.approx([math.log(2) / 16, 3 * math.log(2) / 16])

    @pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
    def test_is_weighted_cross_entropy(self, gamma):
        x = double(5, 3)
        wanted = leaf(x)
        one_hot = F.one_hot(self.TARGET, 4)[:, :3].double()
        p = wanted.sigmoid()
        off = (1 - p) * one_hot + p * (1 - one_hot)
        share = 0.3 * one_hot + 0.7 * (1 - one_hot)
        entropy = F.binary_cross_entropy_with_logits(wanted, one_hot, reduction='none')
        loss = share * off.pow(gamma) * entropy
        found = run(
            lambda x: mmcv.ops.sigmoid_focal_loss(x, self.TARGET, gamma, 0.3, None, 'none'),
            [x],
            OURS,
        )
        above = torch.randn(5, 3, generator=torch.Generator().manual_seed(9)).double()
        assert difference(found[0], loss.detach()) <= EXACT
        assert difference(found[1], torch.autograd.grad(loss, wanted, above)[0]) <= EXACT

    @pytest.mark.parametrize('reduction', ['none', 'mean', 'sum'])
    def test_slopes(self, reduction):
        assert gradcheck(
            lambda x: mmcv.ops.sigmoid_focal_loss(x, self.TARGET, 2.0, 0.25, None, reduction),
            [leaf(double(5, 3))],
        )

    def test_factors_of_classes(self):
        x, factors = double(5, 3), torch.tensor([2.0, 3, 5], dtype=torch.float64)
        plain, weighted = (
            mmcv.ops.sigmoid_focal_loss(x, self.TARGET, 2.0, 0.25, w, 'none')
            for w in (None, factors)
        )
        expected = torch.tensor([2.0, 5, 1, 3, 1], dtype=torch.float64)[:, None]
        assert difference(weighted, plain * expected) <= EXACT

    def test_far_logits_are_finite(self):
        x = torch.tensor([[200.0, -200.0], [-200.0, 200.0]])
        found = run(
            lambda x: mmcv.ops.sigmoid_focal_loss(x, torch.tensor([1, 1]), 2.0, 0.25, None, 'none'),
            [x],
            OURS,
        )
        assert all(f.isfinite().all() for f in found)
        # mmcv stops at log(1e-38), 87.3.
        assert found[0][0].tolist() == pytest.approx([150, 50])

    def test_no_samples(self):
        target = torch.zeros(0, dtype=torch.long)
        found = run(
            lambda x: mmcv.ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, 'sum'),
            [torch.zeros(0, 3)],
            OURS,
        )
        assert found[0].item() == 0 and found[1].shape == (0, 3)


class TestSoftmaxFocalLoss:
    TARGET = torch.tensor([0, 2, -1, 1, 1])

    @pytest.mark.parametrize('gamma', [0.0, 0.5, 1.0, 2.0])
    @pytest.mark.parametrize('reduction', ['mean', 'sum'])
    def test_is_weighted_cross_entropy(self, gamma, reduction):
        x, factors = double(5, 3), torch.tensor([2.0, 3, 5], dtype=torch.float64)
        wanted = leaf(x)
        known = self.TARGET >= 0
        log_p = wanted.log_softmax(1)[known].gather(1, self.TARGET[known, None])[:, 0]
        losses = -0.3 * (1 - log_p.exp()).pow(gamma) * log_p * factors[self.TARGET[known]]
        loss = losses.sum() / (5 if reduction == 'mean' else 1)
        found = run(
            lambda x: mmcv.ops.softmax_focal_loss(x, self.TARGET, gamma, 0.3, factors, reduction),
            [x],
            OURS,
        )
        above = torch.randn((), generator=torch.Generator().manual_seed(9)).double()
        assert difference(found[0], loss.detach()) <= EXACT
        assert difference(found[1], torch.autograd.grad(loss, wanted, above)[0]) <= EXACT

    def test_slopes(self):
        assert gradcheck(
            lambda x: mmcv.ops.softmax_focal_loss(x, self.TARGET, 2.0, 0.25), [leaf(double(5, 3))]
        )


class TestMaskedConvolution:
    def test_is_a_convolution_at_some_places(self):
        layer = mmcv.ops.MaskedConv2d(3, 4, (3, 5), padding=(1, 2)).double()
        maps, mask = double(1, 3, 6, 7), torch.rand(1, 6, 7) > 0.5
        wanted = F.conv2d(maps, layer.weight, layer.bias, padding=(1, 2)) * mask
        assert difference(layer(maps, mask), wanted.detach()) <= EXACT

    def test_no_places(self):
        layer = mmcv.ops.MaskedConv2d(3, 4, 3, padding=1)
        assert layer(torch.randn(1, 3, 4, 4), torch.zeros(1, 4, 4)).abs().max() == 0


def reassembled(features, masks, k, groups, s):
    """CARAFE pixel by pixel."""
    n, c, h, w = features.shape
    padded = F.pad(features, [k // 2] * 4)
    masks = masks.view(n, groups, k, k, s * h, s * w).repeat_interleave(c // groups, 1)
    rows = [
        torch.stack(
            [
                (padded[:, :, y // s : y // s + k, x // s : x // s + k] * masks[..., y, x]).sum(
                    (2, 3)
                )
                for x in range(s * w)
            ],
            -1,
        )
        for y in range(s * h)
    ]
    return torch.stack(rows, 2)


class TestCARAFE:
    HOW = (3, 2, 2)

    @pytest.mark.parametrize('name', ['carafe', 'carafe_naive'])
    def test_values(self, name):
        features, masks = double(2, 4, 3, 4), double(2, 18, 6, 8)
        found = getattr(mmcv.ops, name)(features, masks, *self.HOW)
        assert difference(found, reassembled(features, masks, *self.HOW)) <= EXACT

    def test_slopes(self):
        tensors = [leaf(double(1, 4, 2, 3)), leaf(double(1, 18, 4, 6))]
        assert gradcheck(lambda *t: mmcv.ops.carafe(*t, *self.HOW), tensors)

    def test_slopes_of_the_naive_form(self):
        # mmcv's Python refuses gradients of this one on the CPU.
        features, masks, above = double(1, 4, 2, 3), double(1, 18, 4, 6), double(1, 4, 4, 6)
        found = [torch.zeros_like(features), torch.zeros_like(masks)]
        sizes = dict(zip(('kernel_size', 'group_size', 'scale_factor'), self.HOW))
        OURS.carafe_naive_backward(above, features, masks, *found, **sizes)
        leaves = [leaf(features), leaf(masks)]
        wanted = torch.autograd.grad(reassembled(*leaves, *self.HOW), leaves, above)
        assert max(map(difference, found, wanted)) <= EXACT


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
class TestPSAMask:
    def test_by_loops(self, kind):
        maps = double(2, 15, 4, 3)
        found = mmcv.ops.PSAMask(kind, (3, 5))(maps)
        wanted = maps.new_zeros(2, 4, 3, 4, 3)  # the other place, the own one
        for y in range(4):
            for x in range(3):
                for i in range(3):
                    for j in range(5):
                        other = (y + i - 1, x + j - 2)
                        if 0 <= other[0] < 4 and 0 <= other[1] < 3:
                            wanted[:, other[0], other[1], y, x] = maps[:, i * 5 + j, y, x]
        if kind == 'distribute':
            wanted = wanted.permute(0, 3, 4, 1, 2)
        assert torch.equal(found, wanted.reshape(2, 12, 4, 3))

    def test_slopes(self, kind):
        assert gradcheck(mmcv.ops.PSAMask(kind, (3, 3)), [leaf(double(1, 9, 3, 4))])


class TestDeformableAttention:
    SHAPES = torch.tensor([[4, 5], [2, 3]])
    STARTS = torch.tensor([0, 20])

    def tensors(self):
        locations = torch.rand(2, 3, 2, 2, 4, 2, dtype=torch.float64) * 1.4 - 0.2
        pixels = locations * self.SHAPES.flip(1)[:, None] - 0.5
        locations = (off_kinks(pixels) + 0.5) / self.SHAPES.flip(1)[:, None]
        return [double(2, 26, 2, 3), locations, double(2, 3, 2, 2, 4)]

    def attend(self, value, locations, weights):
        return mmcv.ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            value, self.SHAPES, self.STARTS, locations, weights, 64
        )

    def test_values(self):
        value, locations, weights = self.tensors()
        wanted = value.new_zeros(2, 3, 2, 3)
        for n in range(2):
            for head in range(2):
                for level, (h, w) in enumerate(self.SHAPES.tolist()):
                    start = int(self.STARTS[level])
                    maps = value[n, start : start + h * w, :, :][:, head].T.reshape(3, h, w)
                    x, y = locations[n, :, head, level].unbind(-1)
                    sampled = bilinear(maps, y * h - 0.5, x * w - 0.5)
                    wanted[n, :, head] += (sampled * weights[n, :, head, level]).sum(-1).T
        assert difference(self.attend(value, locations, weights), wanted.flatten(2)) <= EXACT

    def test_slopes(self):
        assert gradcheck(self.attend, [*map(leaf, self.tensors())])


def test_boxes_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6]])
    scores = torch.tensor([0.5, 0.9, 0.1])
    assert mmcv.ops.nms(boxes, scores, 0.4)[1].tolist() == [1, 2]
    assert mmcv.ops.nms(boxes, scores, 0.5)[1].tolist() == [1, 0, 2]
    # One more pixel each way: 6 of 9.
    assert mmcv.ops.nms(boxes, scores, 0.6, offset=1)[1].tolist() == [1, 2]
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.4, method='linear')
    assert kept.tolist() == [1, 0, 2]
    assert dets[:, 4].tolist() == pytest.approx([0.9, 0.25, 0.1])
    matched = mmcv.ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)
    assert [group.tolist() for group in matched] == [[1, 0], [2]]
    assert mmcv.ops.bbox_overlaps(boxes[:1], boxes).tolist() == [[1, 0.5, 0]]
    assert mmcv.ops.bbox_overlaps(boxes[1:2], boxes, mode='iof').tolist() == [[1, 1, 0]]
