"""Gradient tweaking in trainings by MMEngine, from a config."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch import nn

import mmorepa.engine  # noqa: F401
from mmorepa.checkpoints import convert, load_checkpoint
from mmorepa.checkpoints.files import mmengine_loads_weights_only
from mmorepa.checkpoints.models import build_model
from mmorepa.convs import TweakedOREPAConv2d, reparameterize, squeeze
from mmorepa.convs.blocks.gradient_tweaking import tweak
from mmorepa.engine.run import load_config
from support import ROOT, make_trained_like

SAME = 1e-5  # relative, float32
HALF = 5e-3  # relative, gradients that went through float16
LR = 0.1

NAMES = 'resnet18', 'orepa-resnet18', 'tweaked-orepa-resnet18'
NARROW = {
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.head.in_channels': 64,
}


def digits(name, **options):
    path = ROOT / f'configs/digits/{name}_1xb64-10e_digits.py'
    return load_config(path, cfg_options={**NARROW, **options})


def network():
    torch.manual_seed(0)
    layers = []
    for channels, size in ((3, 7), (8, 3), (8, 1)):
        conv = nn.Conv2d(channels, 8, size, padding=size // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(8), nn.ReLU()]
    return reparameterize(nn.Sequential(*layers), 'TweakedOREPA')


@pytest.mark.parametrize('clip', [None, dict(max_norm=1e-3)], ids=['', 'clipped'])
@pytest.mark.parametrize('amp', [False, True], ids=['', 'float16'])
def test_a_step(amp, clip):
    """Accumulation and loss scales commute with it; clipping sees tweaked gradients."""
    net, x = network(), torch.randn(4, 3, 8, 8)
    plain = squeeze(copy.deepcopy(net))
    plain(x).square().mean().backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, module in net.named_modules():
        if isinstance(module, TweakedOREPAConv2d):
            expected[f'{name}.weight'] = tweak(expected[f'{name}.weight'], module.multiplier)
    if clip:
        norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        expected = {name: g * clip['max_norm'] / norm for name, g in expected.items()}

    kind = dict(type='mmorepa.CPUAmpOptimWrapper', dtype='float16', loss_scale=dict())
    wrapper = build_optim_wrapper(
        net,
        dict(
            **(kind if amp else {}),
            optimizer=dict(type='SGD', lr=LR),
            accumulative_counts=2,
            clip_grad=clip,
        ),
    )
    wrapper.initialize_count_status(net, 0, 2)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(2):
        with wrapper.optim_context(net):
            loss = net(x).float().square().mean()
        wrapper.update_params(loss)
    tolerance = HALF if amp else SAME
    for name, parameter in net.named_parameters():
        step = (before[name] - parameter.detach()) / LR
        # Beside float32's rounding of the parameter itself.
        bound = tolerance * expected[name].norm() + 1e-5 * before[name].norm()
        assert (step - expected[name]).norm() <= bound, name


class TestDigitsConfig:
    def test_differs_in_the_block_alone(self):
        first, _, tweaked = (digits(name).to_dict() for name in NAMES)
        tweaked['work_dir'] = first['work_dir']
        first['model']['backbone'].update(type='OREPAResNet', reparam='TweakedOREPA')
        assert tweaked == first

    def test_begins_where_the_branches_begin_with_the_keys_of_the_plain_network(self):
        models = []
        for name in NAMES:
            torch.manual_seed(0)
            models.append(build_model(digits(name)))
        plain, online, tweaked = models
        assert plain.state_dict().keys() == tweaked.state_dict().keys()
        assert sum(isinstance(m, TweakedOREPAConv2d) for m in tweaked.modules()) == 17
        x = torch.randn(2, 3, 32, 32)
        for first, second in zip(online(x, mode='tensor'), tweaked(x, mode='tensor')):
            assert (first - second).norm() < SAME * first.norm()

    @pytest.mark.parametrize('init', [None, dict(type='Kaiming', layer='Conv2d')], ids=str)
    def test_init_weights_leaves_it_there(self, init):
        cfg = digits(NAMES[2])
        cfg.model.backbone.init_cfg = init
        model = build_model(cfg)
        before = copy.deepcopy(model.backbone.state_dict())
        model.init_weights()
        assert torch.equal(model.backbone.conv1.weight, before['conv1.weight'])
        assert torch.equal(model.backbone.layer1[0].conv1.weight, before['layer1.0.conv1.weight'])

    @pytest.mark.parametrize('keep_bn', [True, False], ids=['plain', 'deploy'])
    def test_converts(self, keep_bn, tmp_path):
        cfg = digits(NAMES[2])
        model = make_trained_like(build_model(cfg))
        torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_1.pth')
        done = convert(cfg, tmp_path / 'epoch_1.pth', tmp_path / 'out.pth', keep_bn, probe_size=32)
        assert done.blocks == 17
        written = load_checkpoint(tmp_path / 'out.pth')['state_dict']
        if keep_bn:
            # The weights as they were trained, for the plain network as it stands.
            build_model(digits(NAMES[0])).load_state_dict(written)
            assert all(torch.equal(written[key], own) for key, own in model.state_dict().items())
        else:
            assert not any('bn' in key for key in written)


class Net(BaseModel):
    """A model as MMEngine's Runner wants it."""

    def __init__(self):
        super().__init__()
        self.backbone = network()

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.backbone(torch.stack(inputs)).square().mean())


def train(work_dir, epochs, **fields):
    data = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Runner(
        model=Net(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            dataset=[dict(inputs=image) for image in data],
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=LR, momentum=0.9, weight_decay=1e-4)),
        custom_hooks=[dict(type='EMAHook')],
        experiment_name=f'{work_dir.name}_{epochs}',
        **fields,
    ).train()


def test_a_resumed_training_goes_on_with_the_same_constants(tmp_path):
    whole = train(tmp_path / 'whole', 2)
    train(tmp_path / 'parts', 1)
    with mmengine_loads_weights_only():
        resumed = train(tmp_path / 'parts', 2, resume=True)
    for (name, first), second in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(first, second), name
    checkpoint = torch.load(tmp_path / 'parts' / 'epoch_2.pth', weights_only=False)
    assert not any('multiplier' in key for key in checkpoint['state_dict'])
    assert 'ema_state_dict' in checkpoint
