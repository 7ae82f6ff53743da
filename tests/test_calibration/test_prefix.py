# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forwards that begin where something changed."""

import pytest
import torch
from reconstruct_model import RULES, Net, batches, outputs
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Prefix, frozen, room_for_outputs
from mmdet_ptq.layers import QuantLayer, quant_layers

PASSES = [dict(type='Observe'), dict(type='SetRanges')]


@pytest.fixture
def model():
    found = Net().eval()
    rules = [dict(RULES[0], act=dict(per_level=True)), RULES[1]]
    quantize_detector(
        found, batches(), dict(bits='w4a4', rules=rules, passes=PASSES)
    )
    return found


def narrow(layer, port='input'):
    quantizer = layer.act_quantizers[port]
    low, high = quantizer.range()
    quantizer.set_range(low * 0.7, high * 0.7)


def check(model, changes, room=1 << 30):
    """Outputs after each change are those of a whole forward."""
    data = batches(3)
    layers = quant_layers(model)
    prefix = Prefix(layers, room)
    computed = []
    with frozen(model), prefix.watching():
        for names in changes:
            for name in names:
                narrow(layers[name])
            prefix.change(names)
            start = prefix.computed
            for j in range(3):
                one = data[j : j + 1]
                found = prefix.run(j, lambda one=one: outputs(model, one))
                exact = outputs(model, one)
                for ours, theirs in zip(found, exact, strict=True):
                    assert torch.equal(ours, theirs)
            computed.append((prefix.computed - start) / 3)
    assert not any('forward' in vars(m) for m in layers.values())
    return computed


def test_layers_before_a_change_are_not_computed(model):
    # stem, two blocks of two, two of the neck, tower and head on two levels
    calls = 1 + 4 + 2 + 4
    assert check(
        model,
        [
            [],
            [],
            ['tower'],
            ['neck.1'],
            ['backbone.2.conv2'],
            ['backbone.0'],
            ['tower', 'neck.0'],
        ],
    ) == [calls, 0, 4, 5, 9, calls, 6]


def test_calls_that_have_no_room_are_computed(model):
    # on float32 maps of 12 x 12 the stem and the first layer of a block
    stem = 8 * 12 * 12 * 4
    size = 2 * stem
    assert check(model, [[], ['tower']], room=0) == [11, 11]
    data = batches(1)
    prefix = Prefix(quant_layers(model), size)
    with frozen(model), prefix.watching():
        for computed in (11, 9, 9):
            start = prefix.computed
            prefix.run(0, lambda: outputs(model, data))
            assert prefix.computed - start == computed
        # room that is given back is taken again
        narrow(quant_layers(model)['backbone.0'])
        prefix.change({'backbone.0'})
        for computed in (11, 9):
            start = prefix.computed
            prefix.run(0, lambda: outputs(model, data))
            assert prefix.computed - start == computed


def test_outputs_are_copies(model):
    data = batches(1)
    prefix = Prefix(quant_layers(model), 1 << 30)
    with frozen(model), prefix.watching():
        first = prefix.run(0, lambda: outputs(model, data))
        kept = [t.clone() for t in first]
        for t in first:
            t.zero_()
        for t in prefix.run(0, lambda: outputs(model, data)):
            t.zero_()
        again = prefix.run(0, lambda: outputs(model, data))
    assert all(map(torch.equal, kept, again))


def test_a_forward_that_fails_leaves_nothing_half_known(model):
    data = batches(1)
    prefix = Prefix(quant_layers(model), 1 << 30)

    def fails():
        outputs(model, data)
        raise KeyboardInterrupt

    with frozen(model), prefix.watching():
        exact = prefix.run(0, lambda: outputs(model, data))
        narrow(quant_layers(model)['tower'])
        prefix.change({'tower'})
        with pytest.raises(KeyboardInterrupt):
            prefix.run(0, fails)
        start = prefix.computed
        found = prefix.run(0, lambda: outputs(model, data))
        assert prefix.computed - start == 11
        assert not torch.equal(found[0], exact[0])
        assert torch.equal(found[0], outputs(model, data)[0])


class Outer(nn.Conv2d):
    """A layer that calls another one."""

    def __init__(self):
        super().__init__(8, 8, 1)
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return super().forward(x + self.inner(x))


class OuterTwin(QuantLayer, Outer):
    pass


def test_layers_inside_a_layer():
    outer = Outer()
    model = nn.Sequential(nn.Conv2d(3, 8, 1), outer)
    outer.__class__ = OuterTwin
    outer.init_twin('1')
    inner = outer.inner
    layers = {'1': outer, '1.inner': inner}
    inner.__class__ = type('InnerTwin', (QuantLayer, nn.Conv2d), {})
    inner.init_twin('1.inner')
    x = torch.randn(1, 3, 4, 4)
    prefix = Prefix(layers, 1 << 30)
    with torch.no_grad(), prefix.watching():
        for change, computed in (((), 1), ((), 0), (('1.inner',), 1)):
            if change:
                inner.weight.mul_(2)
            prefix.change(change)
            start = prefix.computed
            found = prefix.run('x', lambda: model(x))
            assert torch.equal(found, model(x))
            assert prefix.computed - start == computed


def test_room_on_a_cpu_is_what_is_given():
    assert room_for_outputs(7, torch.device('cpu')) == 7
