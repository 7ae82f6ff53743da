# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Listeners hear every call, in order, and nothing of them stays."""

import pytest
import torch
from torch import nn

from mmdet_ptq.calibration import frozen, observing
from mmdet_ptq.layers import convert, float_mode
from mmdet_ptq.quantizers import UniformQuantizer


class Net(nn.Module):
    """A shared head on three levels, behind a norm and an in-place ReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.norm(self.stem(x))
        maps = [x[..., :s, :s] + s for s in (4, 2, 1)]
        return [self.relu(self.head(m)) for m in maps]


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net().eval()
    convert(net)
    act = UniformQuantizer(3, per_level=True)
    top = torch.tensor([[5.0], [3.0], [2.0]])
    act.set_range(-top, top)
    net.head.attach(acts=dict(input=act), levels=3)
    return net


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 4)


def watched(net):
    return dict(stem=net.stem, norm=net.norm, head=net.head)


def test_what_is_told(net, x):
    ins, outs, told = [], [], []
    with (
        torch.no_grad(),
        observing(
            watched(net),
            lambda *args: (ins.append(args), told.append(args[0])),
            lambda *args: outs.append((*args[:2], args[2].clone())),
        ),
    ):
        net(x)
        net(x)
    names = ['stem', 'norm', 'head', 'head', 'head'] * 2
    assert told == names
    assert [i for _, _, i, _ in ins] == [0, 0, 0, 1, 2] * 2
    assert {port for _, port, _, _ in ins} == {'input'}
    assert [(n, i) for n, i, _ in outs] == [(n, i) for n, _, i, _ in ins]
    assert torch.equal(ins[0][3], x)
    assert torch.equal(ins[1][3], net.stem(x))
    for (*_, level, a), (*_, y) in zip(ins[2:5], outs[2:5], strict=True):
        # inputs are float, the output is that of the quantized layer
        assert torch.equal(
            a, outs[1][2][..., : a.shape[-1], : a.shape[-1]] + a.shape[-1]
        )
        quantized = net.head.act_quantizers['input'](a, level)
        expected = nn.functional.conv2d(
            quantized, net.head.weight, net.head.bias
        )
        assert torch.equal(y, expected) and not torch.equal(quantized, a)


def test_quantized_inputs(net, x):
    exact, used = [], []
    layers = dict(head=net.head)
    with (
        torch.no_grad(),
        observing(layers, lambda *args: exact.append(args[3])),
        observing(layers, lambda *args: used.append(args), quantized=True),
    ):
        net(x)
        with float_mode(net):
            net(x)
    quantizer = net.head.act_quantizers['input']
    assert len(exact) == len(used) == 6
    for i, (a, (name, port, level, b)) in enumerate(
        zip(exact, used, strict=True)
    ):
        assert (name, port, level) == ('head', 'input', i % 3)
        assert torch.equal(b, quantizer(a, level) if i < 3 else a)


def test_several_and_nested_listeners(net, x):
    told = []

    def ear(number):
        return lambda name, *rest: told.append((number, name, rest[-2]))

    layers = dict(head=net.head, norm=net.norm)
    one = observing(layers, outputs=ear(1))
    two = observing(layers, outputs=ear(2), gradients=ear(3))
    with one:
        with two:
            loss = sum(y.sum() for y in net(x))
            heard = [(i, *at) for at in CALLS for i in (1, 2)]
            assert told == heard
            told.clear()
            loss.backward()
            assert sorted(told) == sorted((3, *at) for at in CALLS)
            assert told[-1] == (3, 'norm', 0)
            told.clear()
        net(x)
    assert told == [(1, *at) for at in CALLS]
    told.clear()
    net(x)
    assert not told


CALLS = [('norm', 0), ('head', 0), ('head', 1), ('head', 2)]


@pytest.mark.parametrize('freeze', [False, True])
def test_gradients_are_those_of_autograd(net, x, freeze):
    """Of the same forward written by hand."""
    found = {}

    def note(name, level, gradient):
        assert (name, level) not in found
        found[name, level] = gradient

    def loss_of(maps):
        return sum((y**3).sum() for y in maps)

    def both():
        with observing(watched(net), gradients=note):
            loss_of(net(x)).backward()

    if freeze:
        with frozen(net):
            net.relu.inplace = True  # which writes over what is heard
            both()
    else:
        both()
    by_hand = {('stem', 0): net.stem(x).detach().requires_grad_()}
    by_hand['norm', 0] = net.norm(by_hand['stem', 0])
    for i, s in enumerate((4, 2, 1)):
        m = by_hand['norm', 0][..., :s, :s] + s
        m = net.head.act_quantizers['input'](m, i)
        by_hand['head', i] = nn.functional.conv2d(
            m, net.head.weight, net.head.bias
        )
    maps = [by_hand['head', i].relu() for i in range(3)]
    grads = torch.autograd.grad(loss_of(maps), list(by_hand.values()))
    assert set(found) == set(by_hand)
    for key, expected in zip(by_hand, grads, strict=True):
        torch.testing.assert_close(found[key], expected)
        assert expected.any()
    # nothing of it is kept in the model
    assert all(p.grad is None for p in net.parameters()) == freeze


def test_a_frozen_layer_before_what_works_in_place(net, x):
    found = []
    with (
        frozen(net),
        observing(
            dict(head=net.head), gradients=lambda *args: found.append(args)
        ),
    ):
        net.relu.inplace = True
        maps = net(x)
        sum((y**2).sum() for y in maps).backward()
    assert [level for _, level, _ in found] == [2, 1, 0]
    for (*_, gradient), y in zip(found, reversed(maps), strict=True):
        torch.testing.assert_close(gradient, 2 * y)


def test_nothing_stays_after_an_exception(net, x):
    told = []

    def fail(name, level, y):
        if name == 'head' and level == 1:
            raise KeyError(name)

    with (
        pytest.raises(KeyError, match='head'),
        observing(watched(net), lambda *args: told.append(args), fail),
    ):
        net(x)
    assert len(told) == 4
    hooks = [
        hook
        for m in net.modules()
        if m is not net
        for hook in (*m._forward_hooks, *m._forward_pre_hooks)
    ]
    assert not hooks
    net(x)
    assert len(told) == 4
    # the next forward starts at level 0
    with observing(dict(head=net.head), lambda *args: told.append(args[2])):
        net(x)
    assert told[4:] == [0, 1, 2]


def test_a_graph_that_outlives_the_block(net, x):
    told = []
    with observing(watched(net), gradients=lambda *args: told.append(args)):
        loss = sum(y.sum() for y in net(x))
    loss.backward()
    assert not told


def test_without_autograd_outputs_are_left_alone(net, x):
    with torch.no_grad(), observing(watched(net), gradients=lambda *_: None):
        assert not any(y.requires_grad for y in net(x))
