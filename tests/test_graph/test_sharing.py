# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What counts as another reader of a parameter, and what does not."""

import pytest
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.linear = nn.Linear(3, 3)
        self.body = body

    def forward(self, x):
        x = self.other(self.conv(x))
        return self.linear(self.body(self, x).mean((2, 3)))


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x * weight.mean()


@pytest.mark.parametrize(
    'body',
    [
        lambda n, x: x,
        # shape, type and place of a parameter are not its numbers
        lambda n, x: x.to(n.conv.weight),
        lambda n, x: x.type_as(n.conv.weight) + n.conv.weight.shape[0],
        lambda n, x: x.to(n.conv.weight.device, n.conv.weight.dtype),
        lambda n, x: x + torch.zeros_like(n.conv.bias)[:, None, None],
        lambda n, x: x + n.conv.weight.new_ones(1),
        # a module that is called twice is one reader
        lambda n, x: n.conv(x),
    ],
)
def test_nothing_is_shared(kit, body):
    found = kit.look(Net(body))
    for node in found.layers.values():
        assert (node.shares, node.tied, node.held) == ('', (), False)


@pytest.mark.parametrize(
    'body, what',
    [
        (lambda n, x: functional.conv2d(x, n.conv.weight), 'weight'),
        (lambda n, x: x + n.conv.bias[:, None, None], 'bias'),
        (lambda n, x: x + n.conv.weight.data.mean(), 'weight'),
        (lambda n, x: Scaled.apply(x, n.conv.weight), 'weight'),
        (
            lambda n, x: x * torch.stack([n.conv.weight[0, 0, 0]] * 2).sum(),
            'weight',
        ),
    ],
)
def test_functions_that_read_a_parameter(kit, body, what):
    found = kit.look(Net(body)).layers
    assert found['conv'].held
    assert found['conv'].shares == (
        f'its {what} is also read by a function in the detector itself'
    )
    assert not found['other'].held and found['other'].shares == ''


class Reader(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layers = (layer,)

    def forward(self, x):
        return functional.conv2d(x, self.layers[0].weight)


def test_a_reader_is_named(kit):
    net = Net(lambda n, x: n.reader(x))
    net.reader = Reader(net.conv)
    found = kit.look(net).layers['conv']
    assert found.shares == "its weight is also read by a function in 'reader'"


def test_what_holds_one_holds_those_with_its_weight(kit):
    """The bias that is read is of one of them alone."""
    net = Net(lambda n, x: x + n.conv.bias[:, None, None])
    net.other.weight = net.conv.weight
    found = kit.look(net).layers
    for name in ('conv', 'other'):
        assert found[name].held and found[name].tied == ()
    assert found['other'].shares == 'its weight is also that of conv'


def test_owners(kit):
    net = Net(lambda n, x: x)
    net.other.weight = net.conv.weight
    found = kit.look(net).layers
    assert found['conv'].tied == ('other',)
    assert found['other'].tied == ('conv',)
    assert found['conv'].shares == 'its weight is also that of other'
    assert not found['conv'].held
    # biases alone: no quantizer is shared
    net = Net(lambda n, x: x)
    net.linear.bias = net.conv.bias
    found = kit.look(net).layers
    assert found['conv'].shares == 'its bias is also that of linear'
    assert (found['conv'].tied, found['conv'].held) == ((), False)
    # a transposed convolution has its channels on another axis, and what
    # holds one holds those that it is tied to
    net = Net(lambda n, x: n.up(x))
    net.up = nn.ConvTranspose2d(3, 3, 1)
    net.up.weight = net.other.weight = net.conv.weight
    found = kit.look(net).layers
    assert all(found[n].held for n in ('up', 'other', 'conv'))
    assert found['conv'].shares == 'its weight is also that of other, up'
    # one that the forward does not call may yet run in another mode
    net = Net(lambda n, x: x)
    net.up = nn.Conv2d(3, 3, 1)
    net.up.weight = net.conv.weight
    assert kit.look(net).layers['conv'].held
    # whatever others are called
    net.other.weight = net.conv.weight
    found = kit.look(net).layers
    assert found['conv'].held and found['other'].held
