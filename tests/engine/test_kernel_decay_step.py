import logging
import math

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmorepa.engine  # noqa: F401
from mmorepa.convs import OREPAConv2d, ReparamConv2d, reparameterize, squeeze
from mmorepa.convs.blocks.kernel_penalty import kernel_parameters, kernel_penalty
from mmorepa.errors import UserError
from support import ROOT

LR, DECAY = 0.1, 0.01
SAME = 1e-5  # relative, float32
HALF = 5e-3  # relative, gradients that went through float16

BLOCKS = ['OREPA', 'RepVGG', 'DBB', 'OREPA-RepVGG']
#: Two blocks and a plain convolution.
WHERE = r'^[03]$'


def model(block='OREPA'):
    torch.manual_seed(0)
    layers = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return reparameterize(nn.Sequential(*layers), block, where=WHERE)


def blocks_of(net):
    return [module for module in net.children() if isinstance(module, ReparamConv2d)]


def wrap(net, optimizer=None, paramwise=None, **fields):
    return build_optim_wrapper(
        net,
        dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=LR, weight_decay=DECAY, **(optimizer or {})),
            paramwise_cfg=dict(kernel_decay=True, norm_decay_mult=0, **(paramwise or {})),
            **fields,
        ),
    )


def decays(net, wrapper):
    """The weight decay of every parameter, by name."""
    found = {
        id(p): group['weight_decay'] for group in wrapper.param_groups for p in group['params']
    }
    return {name: found[id(parameter)] for name, parameter in net.named_parameters()}


@pytest.mark.parametrize('block', BLOCKS)
def test_what_decays(block):
    net = model(block)
    found = decays(net, wrap(net, paramwise=dict(scale=dict(decay_mult=3))))
    assert found['6.weight'] == DECAY
    norms = {name for name, module in net.named_modules() if isinstance(module, _BatchNorm)}
    assert norms
    for name, decay in found.items():
        assert decay == (DECAY if name == '6.weight' else 0), name


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('clip', [None, dict(max_norm=1e-3)], ids=['', 'clipped'])
def test_a_step_is_that_of_weight_decay_on_the_kernel(block, clip):
    """Where the optimizer has weight decay: after accumulation and clipping."""
    net, x = model(block), torch.randn(2, 3, 6, 6)
    wrapper = wrap(net, accumulative_counts=2, clip_grad=clip)
    wrapper.initialize_count_status(net, 0, 2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.eval()  # the same gradients in both passes
    loss = net(x).square().mean()
    own = dict(net.named_parameters())
    gradients = dict(zip(own, torch.autograd.grad(loss, own.values())))
    if clip:
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        gradients = {name: g * clip['max_norm'] / norm for name, g in gradients.items()}
    term = DECAY / 2 * sum(kernel_penalty(part) for part in blocks_of(net))
    term = term + DECAY / 2 * own['6.weight'].square().sum()
    pulls = dict(zip(own, torch.autograd.grad(term, own.values(), allow_unused=True)))
    for _ in range(2):
        wrapper.update_params(net(x).square().mean())
    for name, parameter in own.items():
        pull = 0 if pulls[name] is None else pulls[name]
        expected = -LR * (gradients[name] + pull)
        bound = SAME * expected.abs().max() + 1e-7 * before[name].abs().max()
        assert (parameter.detach() - before[name] - expected).abs().max() <= bound, name


def test_amp_with_a_loss_scale():
    """The term is added to gradients that are scaled back, and left out with a step."""
    x = torch.randn(2, 3, 6, 6)
    steps = []
    for kind in ('OptimWrapper', 'mmorepa.CPUAmpOptimWrapper'):
        amp = kind != 'OptimWrapper'
        fields = dict(loss_scale=dict(init_scale=1024.0), dtype='float16') if amp else {}
        net = model()
        wrapper = wrap(net, type=kind, **fields)
        before = [p.detach().clone() for p in kernel_parameters(blocks_of(net)[1])]
        with wrapper.optim_context(net):
            loss = 1e-4 * net(x).float().square().mean()
        wrapper.update_params(loss)
        after = kernel_parameters(blocks_of(net)[1])
        steps.append([p.detach() - old for p, old in zip(after, before)])
    for plain, scaled in zip(*steps):
        assert (plain - scaled).norm() <= HALF * plain.norm().clamp_min(1e-7)

    # An overflow: MMEngine leaves the step out.
    before = [p.detach().clone() for p in net.parameters()]
    with wrapper.optim_context(net):
        loss = net(x).float().square().mean() * float('inf')
    wrapper.update_params(loss)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before))


def test_what_gets_no_gradient_does_not_decay():
    net = model()
    wrapper = wrap(net)
    blocks_of(net)[0].requires_grad_(False)
    before = blocks_of(net)[0].squeeze()
    wrapper.update_params(net(torch.randn(2, 3, 6, 6)).square().mean())
    assert torch.equal(blocks_of(net)[0].squeeze(), before)
    term = DECAY / 2 * kernel_penalty(blocks_of(model())[1])
    logged = MessageHub.get_current_instance().get_scalar('train/kernel_decay').current()
    assert logged == pytest.approx(term.item(), rel=SAME)


def test_the_decay_of_a_block_follows_the_other_rules():
    torch.manual_seed(0)
    net = nn.Sequential(OREPAConv2d(3, 8, 7, bias=False), OREPAConv2d(8, 8, 3, bias=False))
    rules = dict(stem=dict(decay_mult=0.5), scale=dict(decay_mult=0), stem_scale=dict(decay_mult=0))
    wrapper = wrap(net, paramwise=rules)
    assert not any(decays(net, wrapper).values())
    kernels = [block.squeeze() for block in net]
    expected = DECAY / 2 * (0.5 * kernels[0].square().sum() + kernels[1].square().sum())
    pulls = torch.autograd.grad(expected, net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    wrapper.step()
    for parameter, pull in zip(net.parameters(), pulls):
        assert (parameter.grad - pull).norm() <= SAME * pull.norm()
    logged = MessageHub.get_current_instance().get_scalar('train/kernel_decay').current()
    assert logged == pytest.approx(expected.item(), rel=SAME)


@pytest.mark.parametrize(
    'change, optimizer, paramwise, message',
    [
        (squeeze, {}, {}, 'kernel_decay, but Sequential has no block with branches: leave it out'),
        (None, {}, dict(kernel_decay=0.1), 'kernel_decay=0.1: wanted True or False'),
        (None, dict(weight_decay=0.0), {}, 'wants a weight_decay above 0, but the optimizer has'),
        (None, dict(fused=True), {}, 'wants an optimizer without fused=True'),
    ],
    ids=['no block', 'no bool', 'no decay', 'fused'],
)
def test_wrong_rules_get_one_line(change, optimizer, paramwise, message):
    net = change(model()) if change else model()
    cfg = dict(
        constructor='OREPAOptimWrapperConstructor',
        optimizer={**dict(type='SGD', lr=LR, weight_decay=DECAY), **optimizer},
        paramwise_cfg={'kernel_decay': True, **paramwise},
    )
    with pytest.raises(UserError, match=message) as info:
        build_optim_wrapper(net, cfg)
    assert '\n' not in str(info.value)


class Net(BaseModel):
    """A model as MMEngine's Runner wants it."""

    def __init__(self, block):
        super().__init__()
        self.backbone = model(block)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.backbone(torch.stack(inputs)).square().mean())


@pytest.fixture
def log():
    """What MMEngine logs while a test runs."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    yield handler, lines
    for logger in MMLogger._instance_dict.values():
        logger.removeHandler(handler)


@pytest.mark.parametrize('block', BLOCKS)
def test_a_training_by_the_runner(block, tmp_path, log):
    data = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    runner = Runner(
        model=Net(block),
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            dataset=[dict(inputs=image) for image in data],
            sampler=dict(type='InfiniteSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=False, max_iters=3),
        optim_wrapper=dict(
            constructor='OREPAOptimWrapperConstructor',
            optimizer=dict(type='SGD', lr=LR, momentum=0.9, weight_decay=DECAY),
            paramwise_cfg=dict(kernel_decay=True),
        ),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'kernel_decay_{block}',
    )
    handler, lines = log
    runner.logger.addHandler(handler)
    first = DECAY / 2 * sum(kernel_penalty(b) for b in blocks_of(runner.model.backbone)).item()
    runner.train()
    logged = [line for line in lines if '(train)' in line]
    assert len(logged) == 3
    values = [float(line.split('kernel_decay: ')[1].split()[0]) for line in logged]
    if block == 'OREPA':
        # No BatchNorm inside: the first value is that of the start, and decay alone pulls on it.
        assert values[0] == pytest.approx(first, rel=1e-2)
    assert all(math.isfinite(value) and value > 0 for value in values)


def test_the_digits_config():
    names = ('orepa-resnet18_kernel-decay', 'orepa-resnet18')
    mine, other = (
        Config.fromfile(ROOT / f'configs/digits/{name}_1xb64-10e_digits.py').to_dict()
        for name in names
    )
    assert mine['optim_wrapper']['paramwise_cfg'].pop('kernel_decay') is True
    assert mine == other
