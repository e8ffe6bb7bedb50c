"""Operations, counted by hand first."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mmorepa.lab.benchmark.counted_step import imagined_processes
from mmorepa.lab.benchmark.operations import Operation, Operations, count_operations

FLOAT = 4


def ones(*shape):
    return torch.ones(shape)


def test_order_and_names():
    a, b = ones(2, 3), ones(3, 2)
    found = count_operations(lambda: (a @ b).relu().sum())
    assert [operation.name for operation in found] == ['aten.mm', 'aten.relu', 'aten.sum']
    assert found.total == 3
    assert found.by_name['aten.mm'] == 1


def test_the_most_frequent_first():
    a = ones(2)
    found = count_operations(lambda: (a + a).mul(2).mul(3))
    assert list(found.by_name.items()) == [('aten.mul', 2), ('aten.add', 1)]


@pytest.mark.parametrize(
    'work',
    [
        lambda x: x.view(-1),
        lambda x: x.t().reshape(3, 2, 1),
        lambda x: x.expand(5, 2, 3)[0],
        lambda x: x.split(1)[1].unbind(),
        lambda x: x.detach().permute(1, 0).unsqueeze(0),
        lambda x: torch.empty_like(x),
        lambda x: x.new_empty(7),
    ],
)
def test_what_asks_for_no_kernel(work):
    x = ones(2, 3)
    assert count_operations(lambda: work(x)) == []


@pytest.mark.parametrize(
    'work, count',
    [(torch.empty_like, 1), (lambda x: x.new_empty(7), 1), (torch.t, 0), (torch.relu, 1)],
)
def test_allocations(work, count):
    x = ones(2, 3)
    assert count_operations(lambda: work(x), allocations=True).total == count


@pytest.mark.parametrize(
    'work',
    [
        lambda x: x.t().contiguous(),
        lambda x: x.add_(1),
        lambda x: x[0].zero_(),
        lambda x: torch._foreach_add_([x, x[0]], 1),
    ],
)
def test_what_asks_for_one(work):
    x = ones(2, 3)
    assert count_operations(lambda: work(x)).total == 1


def test_backward_passes_are_included():
    weight = nn.Parameter(ones(2, 3))
    found = count_operations(lambda: (ones(4, 2) @ weight).sum().backward())
    assert found.by_name['aten.mm'] == 2


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('groups, transposed', [(1, False), (2, False), (2, True)], ids=str)
def test_convolutions(device, groups, transposed):
    """6 to 4 channels, 3 x 3, 7 x 7 pixels: padded, as many come out."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    conv = kind(6, 4, 3, padding=1, groups=groups, bias=False, device=device)
    x = torch.ones(2, 6, 7, 7, device=device, requires_grad=True)
    out = []
    (forward,) = count_operations(lambda: out.append(conv(x)))
    flops = 2 * (2 * 7 * 7) * (6 * 4 // groups * 9)
    assert (forward.flops, forward.calls) == (flops, 1)
    grad = torch.ones_like(out[0])
    (backward,) = count_operations(lambda: out[0].backward(grad))
    assert backward.name == 'aten.convolution_backward'
    assert (backward.flops, backward.calls) == (2 * flops, 2)


def test_images_want_no_gradient():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    out = conv(ones(2, 3, 5, 5))
    grad = ones(*out.shape)
    (backward,) = count_operations(lambda: out.backward(grad))
    assert (backward.flops, backward.calls) == (2 * 2 * 25 * 12, 1)


def test_products():
    left, right = ones(5, 2, 3), ones(5, 3, 4)
    (found,) = count_operations(lambda: torch.bmm(left, right))
    assert found.flops == 2 * 5 * 2 * 3 * 4
    assert found.bytes == FLOAT * 5 * (6 + 12 + 8)


def test_bytes():
    a, b = ones(2, 3), ones(3)
    (added,) = count_operations(lambda: a + b)
    assert (added.flops, added.bytes) == (0, FLOAT * (6 + 3 + 6))
    (in_place,) = count_operations(lambda: a.add_(b))
    assert in_place.bytes == FLOAT * (6 + 3 + 6)
    (expanded,) = count_operations(lambda: torch.relu(b.expand(100, 3)))
    assert expanded.bytes == FLOAT * (3 + 300)
    (half,) = count_operations(lambda: b.half())
    assert half.bytes == (FLOAT + 2) * 3


def test_totals():
    found = Operations([Operation('aten.mm', 10, 3), Operation('c10d.allreduce_', 0, 5)])
    assert (found.total, found.flops, found.bytes) == (1, 10, 3)
    assert found.sent == {'allreduce': 5}


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_what_is_sent(device):
    x, all_of_it = (torch.ones(n, device=device) for n in (5, 20))

    def send():
        dist.all_reduce(x)
        dist.broadcast(x[:2], 3)
        dist.broadcast(x, 1, async_op=True).wait()
        dist.all_gather_into_tensor(all_of_it, x)
        dist.barrier()

    with imagined_processes(rank=1, count=4):
        found = count_operations(send)
    assert found.sent == {
        'allreduce': 5 * FLOAT,
        'broadcast': (2 + 5) * FLOAT,
        '_allgather_base': (20 + 5) * FLOAT,
    }
    assert found.total == 0
    assert not dist.is_initialized()
