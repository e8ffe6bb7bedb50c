"""reparameterize on models of every make."""

import copy

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet, vgg

from mmorepa import OREPAConv2d, reparameterize, squeeze, switch_to_deploy, verify
from mmorepa.convs import DBBConv2d, ReparamConv2d
from mmorepa.convs.blocks.normed import AbsorbedNorm
from mmorepa.convs.blocks.table import BLOCKS
from support import make_trained_like

KEPT = 1e-5  # relative, logits of a network before and after

#: vgg11 with a quarter of its channels.
NARROW_VGG = [size if size == 'M' else size // 4 for size in vgg.cfgs['A']]
#: Models of other packages, narrow where they can be.
MODELS = {
    'torchvision-resnet10': lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]),
    'torchvision-mobilenet_v2': lambda: torchvision.models.mobilenet_v2(width_mult=0.25),
    'torchvision-vgg11_bn': lambda: vgg.make_layers(NARROW_VGG, batch_norm=True),
    'timm-resnet14t': lambda: timm.create_model('resnet14t', channels=(16, 32, 64, 128)),
    'timm-ghostnet_050': lambda: timm.create_model('ghostnet_050'),
}


#: Rates above one only cost time here.
NARROW_BLOCKS = [
    dict(type=name, rate=1) if name == 'ExpandNet' else dict(type=name) for name in BLOCKS
]


def kinds(model, kind):
    return [name for name, module in model.named_modules() if isinstance(module, kind)]


def small():
    torch.manual_seed(0)
    return make_trained_like(
        nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 32, 7, 2, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Sequential(nn.Conv2d(32, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(
                nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
            ),
        )
    )


def image(size=64, **kwargs):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), **kwargs)


@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
@pytest.mark.parametrize('block', NARROW_BLOCKS, ids=str)
def test_keeps_the_function_of_any_model(make, block):
    torch.manual_seed(0)
    model = make_trained_like(make())
    changed = copy.deepcopy(model)
    reparameterize(changed, block, keep_function=True)
    assert kinds(changed, ReparamConv2d)
    assert verify(model, changed, image()).within(KEPT)
    assert verify(model, switch_to_deploy(changed), image()).within(KEPT)
    assert not kinds(changed, ReparamConv2d)


@pytest.mark.parametrize('block', ['OREPA', 'ExpandNet'])
def test_keeps_the_function_of_grouped_networks_with_activations_in_their_norms(block):
    torch.manual_seed(0)
    model = make_trained_like(timm.create_model('regnetx_002'))
    changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
    assert verify(model, changed, image()).within(KEPT)
    assert verify(model, switch_to_deploy(changed), image()).within(KEPT)


@pytest.mark.parametrize('block', BLOCKS)
class TestKeepFunction:
    def test_in_float64(self, block):
        model = small().double()
        changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
        assert verify(model, changed, image(dtype=torch.float64)).within(1e-10)

    def test_while_training(self, block):
        model = small().double()
        changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
        x = image(dtype=torch.float64)
        assert (model.train()(x) - changed.train()(x)).abs().max() < 1e-10

    def test_training_goes_on(self, block):
        model = reparameterize(small(), block, keep_function=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        target = torch.randn(2, 4, 30, 30, generator=torch.Generator().manual_seed(2))
        losses = []
        for _ in range(4):
            loss = (model(image()) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]

    def test_all_branches_come_into_play(self, block):
        """After a few steps no branch is where it started, nor without effect."""
        # In float64, where the smallest step shows.
        model = reparameterize(small().double(), block, keep_function=True).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for seed in range(3):
            torch.manual_seed(seed)
            loss = (model(image(dtype=torch.float64)) * torch.randn(2, 4, 30, 30)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
        assert not still, still


def test_without_keeping_the_function_it_starts_afresh():
    model = small()
    changed = reparameterize(copy.deepcopy(model), 'OREPA')
    assert verify(model, changed, image()).relative > 0.1


def test_without_branch_norms():
    model = small()
    model[1][0].bias = nn.Parameter(torch.randn(8))
    block = dict(type='DBB', branch_norm=False)
    changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
    # The convolution with a bias is left alone, the block would have none.
    assert kinds(changed, DBBConv2d) == ['2.0']
    assert verify(model, changed, image()).within(KEPT)


@pytest.mark.parametrize(
    'where, expected',
    [
        (None, ['0.0', '1.0', '2.0', '2.2']),
        (r'^[12]\.0$', ['1.0', '2.0']),
        (lambda name, conv: conv.kernel_size == (1, 1), ['2.2']),
        (lambda name, conv: name.startswith('0'), ['0.0']),
        (dict(kernel_size=3), ['1.0', '2.0']),
        (dict(kernel_size=[1, 7]), ['0.0', '2.2']),
        (dict(name='^2', kernel_size=3), ['2.0']),
    ],
)
def test_where(where, expected):
    model = small()
    assert reparameterize(model, 'OREPA', where) is model
    assert kinds(model, OREPAConv2d) == expected


def test_blocks_with_norms_take_only_convolutions_that_have_one():
    model = reparameterize(small(), 'MobileOne')
    assert kinds(model, ReparamConv2d) == ['1.0', '2.0']
    assert kinds(model, AbsorbedNorm) == ['1.1', '2.1']


def test_options():
    block = dict(type='OREPA', branches=['original', 'pointwise'])
    model = reparameterize(small(), block, r'^1\.0')
    assert [n for n, _ in model[1][0].kernel.named_children()] == ['original', 'pointwise']


def test_a_convolution_as_the_model():
    conv = nn.Conv2d(4, 8, 3)
    block = reparameterize(conv, 'OREPA', keep_function=True)
    x = torch.randn(1, 4, 8, 8)
    assert type(block) is OREPAConv2d
    torch.testing.assert_close(block(x), conv(x))


def test_shared_convolutions_stay_shared():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleList([nn.Sequential(conv, nn.BatchNorm2d(4)), nn.Sequential(conv)])
    reparameterize(model, 'OREPA')
    assert type(model[0][0]) is OREPAConv2d
    assert model[0][0] is model[1][0]


def test_modes_and_frozen_parts_are_kept():
    model = small().eval()
    model[1].requires_grad_(False)
    model[2].train()
    reparameterize(model, 'OREPA')
    assert not model[0][0].training and model[2][0].training
    assert not any(p.requires_grad for p in model[1].parameters())
    assert all(p.requires_grad for p in model[0][0].parameters())


@pytest.mark.parametrize('activation', [nn.ReLU, nn.PReLU])
@pytest.mark.parametrize('block', ['OREPA', 'DBB', 'MobileOne'])
def test_timms_norms_with_an_activation_inside(block, activation):
    plain = make_trained_like(
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), BatchNormAct2d(8, act_layer=activation))
    )
    model = reparameterize(copy.deepcopy(plain), block, keep_function=True)
    again = reparameterize(copy.deepcopy(plain), block)
    again.load_state_dict(plain.state_dict())
    forms = [model, again, squeeze(model, inplace=False), switch_to_deploy(model, inplace=False)]
    for form in forms:
        assert verify(plain, form, image(16)).within(KEPT)
    assert (model(image(16)) >= 0).all() == (activation is nn.ReLU)
    assert type(forms[2][1]) is BatchNormAct2d
    assert forms[2].state_dict().keys() == plain.state_dict().keys()
    assert not kinds(forms[3], _BatchNorm)


@pytest.mark.parametrize('name', ['test_efficientnet', 'test_byobnet'])
@pytest.mark.parametrize('block', ['DBB', 'RepVGG', 'ACNet', 'MobileOne'])
def test_blocks_with_norms_in_timms_networks(name, block):
    torch.manual_seed(0)
    model = make_trained_like(timm.create_model(name))
    changed = reparameterize(copy.deepcopy(model), block, keep_function=True)
    assert verify(model, changed, image()).within(KEPT)
    deployed = switch_to_deploy(changed, inplace=False)
    assert verify(model, deployed, image()).within(KEPT)
    assert not kinds(deployed, (_BatchNorm, ReparamConv2d))
    model.load_state_dict(squeeze(changed).state_dict())


def test_squeezed_has_the_keys_of_the_model_before():
    plain = torchvision.models.resnet18(num_classes=10)
    model = reparameterize(copy.deepcopy(plain), 'DBB')
    plain.load_state_dict(squeeze(model).state_dict(), strict=True)


@pytest.mark.parametrize(
    'block, where, message',
    [
        ('OREPAA', None, "no block is named 'OREPAA'; the names are 'OREPA'"),
        (dict(branches=['original']), None, 'no block is named None'),
        (['OREPA'], None, r"no block is named \"\['OREPA'\]\""),
        (dict(type='DBB', rate=2), None, "DBB has no option 'rate'; it has 'branch_norm'"),
        ('OREPA', 'nowhere', "no convolution that 'OREPA' can take the place of where 'nowhere'"),
        ('OREPA', '(', "where has the name '\\(', which is no regular expression: missing"),
        ('OREPA', dict(size=3), "where={'size': 3} is not understood: wanted"),
        ('OREPA', dict(kernel_size='3'), "kernel_size='3': wanted a whole number"),
        ('OREPA', dict(kernel_size=3.0), 'kernel_size=3.0: wanted a whole number'),
        ('DBB', '2.2', r"of where '2.2': 2.2 has no BatchNorm right behind it$"),
    ],
)
def test_wrong_arguments(block, where, message):
    with pytest.raises(ValueError, match=message) as info:
        reparameterize(small(), block, where)
    assert '\n' not in str(info.value)


def test_a_convolution_whose_function_cannot_be_kept_stays_plain():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 7, groups=8))
    before = copy.deepcopy(model)
    with pytest.warns(UserWarning, match='stay plain, .* function: 2; 2: a deep linear stem of 8'):
        reparameterize(model, 'OREPA', keep_function=True)
    assert [type(conv) for conv in model] == [OREPAConv2d, OREPAConv2d, nn.Conv2d]
    assert verify(before, model, torch.randn(1, 4, 16, 16)).within(KEPT)


def test_where_no_function_can_be_kept_nothing_is_changed():
    model = nn.Sequential(nn.Conv2d(8, 8, 7, groups=8))
    with pytest.raises(ValueError, match=r'^0: a deep linear stem of 8 channels cannot') as info:
        reparameterize(model, 'OREPA', keep_function=True)
    assert '\n' not in str(info.value)
    assert type(model[0]) is nn.Conv2d


def test_what_a_block_cannot_be_or_not_reach_stays():
    class Alias(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
            vars(self)['alias'] = self.conv

        def forward(self, x):
            return self.last(self.alias(x))

    model, x = Alias(), torch.randn(1, 4, 8, 8)
    expected = model(x)
    assert type(reparameterize(model, keep_function=True).conv) is nn.Conv2d
    assert torch.allclose(model(x), expected, atol=KEPT)
    with pytest.raises(ValueError, match='conv has a second place, a plain list or attribute'):
        reparameterize(Alias(), where='^conv')
    with pytest.raises(ValueError, match='0 has complex weights'):
        reparameterize(nn.Sequential(nn.Conv2d(4, 4, 3, dtype=torch.complex64)))


def test_the_first_convolutions_say_why_they_do_not_fit():
    sizes = ((2, 2), (3, 1), (4, 4), (6, 6))
    model = nn.Sequential(*[nn.Conv2d(3, 3, size) for size in sizes])
    with pytest.raises(ValueError, match='0 has a kernel of 2x2, .* of 4x4, and 1 more$'):
        reparameterize(model)


def test_frozen_constants_stay_unless_they_are_named():
    """Such as the layer of YOLO heads that takes the mean of a distribution."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 1, 1, bias=False).requires_grad_(False))
    assert kinds(reparameterize(copy.deepcopy(model)), OREPAConv2d) == ['0']
    assert kinds(reparameterize(model, where='1'), OREPAConv2d) == ['1']


def test_keeping_the_function_wants_the_original_branch():
    block = dict(type='OREPA', branches=['average'])
    with pytest.raises(ValueError, match="keep_function wants the branch 'original'"):
        reparameterize(nn.Conv2d(4, 4, 3), block, keep_function=True)


@pytest.mark.parametrize('keep_function', [True, False])
def test_a_block_takes_the_mode_of_the_norm_that_it_takes_in(keep_function):
    """Frozen statistics stay frozen in a model that trains."""
    model = make_trained_like(small()).train()
    model[0][1].eval()
    before = model[0][:2](image(16))
    reparameterize(model, 'DBB', keep_function=keep_function)
    assert not any(norm.training for norm in model[0][0].modules() if isinstance(norm, _BatchNorm))
    if keep_function:
        torch.testing.assert_close(model[0][:2](image(16)), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('frozen', ['convolution', 'norm', 'bias'])
def test_what_is_frozen_stays_so_part_by_part(frozen):
    block = 'OREPA' if frozen == 'bias' else 'DBB'
    model = nn.Sequential(nn.Conv2d(4, 4, 3, bias=frozen == 'bias'), nn.BatchNorm2d(4))
    part = dict(convolution=model[0], norm=model[1], bias=model[0].bias)[frozen]
    part.requires_grad_(False)
    reparameterize(model, block)
    if frozen == 'bias':
        assert not model[0].bias.requires_grad
        assert all(p.requires_grad for p in model[0].kernel.parameters())
        return
    norms = [branch.norm for branch in model[0].children()]
    others = {*model[0].parameters()} - {p for norm in norms for p in norm.parameters()}
    assert all(p.requires_grad == (frozen != 'norm') for n in norms for p in n.parameters())
    if frozen == 'convolution':
        assert not any(p.requires_grad for p in others)


def test_shared_weights_stay_and_are_refused_by_name():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match='^0 and 2 share one weight') as info:
        reparameterize(model, where=dict(kernel_size=3))
    assert '\n' not in str(info.value)
    assert kinds(reparameterize(model), OREPAConv2d) == ['1']
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize('block', ['OREPA', 'DBB'])
def test_hooks_go_on(block):
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    seen = []
    handles = [
        layer.register_forward_hook(lambda module, inputs, output: seen.append(type(module)))
        for layer in model
    ]
    reparameterize(model, block)
    model(torch.randn(2, 4, 8, 8))
    assert len(seen) == 2
    for handle in handles:
        handle.remove()
    model(torch.randn(2, 4, 8, 8))
    assert len(seen) == 2
