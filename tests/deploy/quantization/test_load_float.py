"""The float network: in deploy form, finite, and not quantized before."""

import pytest
import torch
from torch import nn

from mmorepa.checkpoints import load_checkpoint
from mmorepa.checkpoints.forms import form_of
from mmorepa.convs import verify
from mmorepa.deploy.quantization.qat import load_float
from mmorepa.errors import UserError


def test_every_form_gives_one_network(config, checkpoint, plain):
    first, second = (load_float(config(), path) for path in (checkpoint, plain))
    assert form_of(first) == 'deploy'
    assert verify(first, second, torch.randn(2, 3, 48, 48)).within(1e-4)


def test_a_weight_that_is_not_finite_is_named(config, checkpoint, tmp_path):
    state_dict = load_checkpoint(checkpoint)['state_dict']
    # Finite itself, its root is not: a whole channel of the folded weight, 8 inputs of 3 x 3.
    state_dict['backbone.layer2.0.bn1.running_var'][3] = -1
    torch.save(state_dict, tmp_path / 'broken.pth')
    with pytest.raises(
        UserError, match=r'deploy form .* not finite, .*layer2.0.conv1 \(weight, 72 of'
    ):
        load_float(config(), tmp_path / 'broken.pth')


def quantized_state_dict(path):
    weight = torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8)
    torch.save(dict(state_dict={'conv.weight': weight.int_repr()}), path)


def script(path):
    torch.jit.trace(nn.ReLU(), torch.zeros(1)).save(str(path))


@pytest.mark.parametrize(
    'name, write, message',
    [
        ('int8.pth', quantized_state_dict, 'int8 already, conv.weight has torch.int8'),
        ('int8.pt', script, 'an exported or int8 model; give the checkpoint'),
        (
            'int8.onnx',
            lambda path: path.write_bytes(b''),
            'an exported or int8 model; give the checkpoint',
        ),
        ('missing.pth', lambda path: None, 'no checkpoint at'),
    ],
    ids=lambda value: value if isinstance(value, str) and value[-1] != 'l' else '',
)
def test_refuses_what_is_no_float_checkpoint(config, tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(UserError, match=message) as raised:
        load_float(config(), tmp_path / name)
    assert '\n' not in str(raised.value)
