# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Several widths in both operands, against sums over all products."""

from itertools import product

import pytest
import torch
from torch import nn

from mmdet_ptq.cost import cost_of, paired_bits, storage_mb
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.plan import attach
from mmdet_ptq.quantizers import ChannelGroups
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec


def twin(layer, weight=None, **acts):
    """A quantized layer; widths of its weight and inputs."""
    model = nn.Sequential(layer)
    convert(model)
    axis = model[0].weight_axis
    model[0].attach(
        weight
        and ChannelGroups(max(weight), weight, 2, axis=axis, role='weight'),
        {
            port: ChannelGroups(max(bits), bits, size, axis=at)
            for port, (bits, size, at) in acts.items()
        },
    )
    return model[0]


def test_groups_of_a_convolution():
    """Output channels meet inputs of their own group alone."""
    conv = nn.Conv2d(8, 4, 1, groups=2)
    layer = twin(conv, [2, 8], input=([3, 4, 6, 8], 2, 1))
    out, into = [2, 2, 8, 8], [3, 3, 4, 4, 6, 6, 8, 8]
    pairs = [
        (o, i) for o, i in product(range(4), range(8)) if o // 2 == i // 4
    ]
    want = sum(out[o] * into[i] for o, i in pairs) / len(pairs)
    assert paired_bits(layer, [(1, 8, 5, 5)]) == want == (2 * 3.5 + 8 * 7) / 2


@pytest.mark.parametrize(
    'conv', [nn.Conv2d(8, 4, 1), nn.ConvTranspose2d(8, 8, 1, groups=2)]
)
def test_where_each_meets_each_the_means_do(conv):
    layer = twin(conv, [2, 8], input=([3, 4, 6, 8], 2, 1))
    assert paired_bits(layer, [(1, 8, 5, 5)]) is None


SHAPES = dict(a=(2, 4, 6, 8), b=(2, 4, 8, 10))


@pytest.mark.parametrize('axes', [*product(range(1, 4), repeat=2)])
def test_products_of_activations(axes):
    """Widths along heads, tokens and what is summed up, by a loop."""
    bits, acts = dict(a=[2, 8], b=[3, 7]), {}
    for (port, shape), axis in zip(SHAPES.items(), axes, strict=True):
        acts[port] = (bits[port], shape[axis] // 2, axis)
    layer = twin(MatMul(), **acts)
    total, count = 0, 0
    for h, n, k, m in product(range(4), range(6), range(8), range(10)):
        at = dict(a=(0, h, n, k), b=(0, h, k, m))
        both = [
            bits[p][at[p][axis] // (SHAPES[p][axis] // 2)]
            for p, axis in zip('ab', axes, strict=True)
        ]
        total, count = total + both[0] * both[1], count + 1
    found = paired_bits(layer, [*SHAPES.values()])
    means = found is None
    assert means == (axes not in {(1, 1), (3, 2)})
    assert (5 * 5 if means else found) == total / count


def test_one_operand_of_one_width():
    plain = twin(MatMul(), a=([2, 8], 2, 1), b=([5], 4, 1))
    assert paired_bits(plain, [*SHAPES.values()]) == 5 * 5
    assert (
        paired_bits(twin(MatMul(), a=([2, 8], 2, 1)), [*SHAPES.values()])
        is None
    )
    assert paired_bits(nn.Linear(2, 2), [(1, 2)]) is None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.linear = nn.Linear(4, 6)

    def forward(self, x):
        return self.linear(self.depthwise(x).movedim(1, -1))


def test_bit_operations_and_bytes_by_hand(kit):
    """A depthwise convolution and a linear layer, before there are ranges."""
    net, x = Net().eval(), torch.rand(1, 4, 5, 5)
    graph = kit.look(net, lambda: net(x))
    groups = dict(channels=2)

    def spec(*widths):
        args = dict(groups, widths=[*widths])
        return QuantSpec('ChannelGroups', max(widths), args)

    layers = dict(
        depthwise=LayerPlan('depthwise', spec(2, 8), dict(input=spec(3, 7))),
        linear=LayerPlan('linear', spec(4, 8, 3), dict(input=spec(4, 6))),
    )
    ports = [[(name, 'input')] for name in layers]
    plan = QuantPlan(layers, ports)
    convert(net)
    attach(net, plan, {})
    cost = cost_of(net, graph, plan)
    # 25 places, 9 taps, two channels of 2 x 3 bits and two of 8 x 7
    depthwise = 25 * 9 * (2 * 2 * 3 + 2 * 8 * 7)
    linear = 25 * (2 * 4 + 2 * 8 + 2 * 3) * (2 * 4 + 2 * 6)
    found = {n: one['bops'] for n, one in cost['layers'].items()}
    assert found == dict(depthwise=depthwise, linear=linear)
    # two scales of the linear layer's input meet in each sum
    assert cost['grouping']['partial_sums'] == 25 * 6 * 32
    assert cost['bops']['quantized'] == depthwise + linear + 25 * 6 * 32
    # codes, 32 bits and a zero point a row, float biases; inputs have a row
    # for each group
    sizes = dict(
        depthwise=9 * 20 + 4 * 32 + 20 + 4 * 32 + 2 * 32 + 10,
        linear=4 * 30 + 6 * 32 + 30 + 6 * 32 + 2 * 32 + 10,
    )
    for name, bits in sizes.items():
        assert cost['layers'][name]['bytes']['quantized'] == bits / 8
    assert storage_mb(net, graph)[1] == sum(sizes.values()) / 8e6
