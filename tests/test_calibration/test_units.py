# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Units that are watched and called alone."""

from types import SimpleNamespace

import pytest
import torch
from seeded import seeded

from mmdet_ptq.calibration.units import UnitView, frozen, mix
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.structures import Unit


def test_frozen():
    net = torch.nn.Sequential(
        torch.nn.ReLU(inplace=True),
        torch.nn.Linear(4, 4),
        torch.nn.ReLU(),
        torch.nn.Linear(4, 4),
    )
    net[3].requires_grad_(False)
    x = torch.randn(2, 4)
    before = x.clone()
    with frozen(net):
        assert not net(x).requires_grad
        assert torch.equal(x, before)
    assert net[0].inplace and not net[2].inplace
    wanted = [p.requires_grad for p in net.parameters()]
    assert wanted == [True, True, False, False]
    net(x)
    assert not torch.equal(x, before)


@pytest.mark.parametrize(
    ('readers', 'relu'),
    [
        (['relu'], True),
        (['relu_', 'ReLU'], True),
        (['relu', 'add'], False),
        (['sigmoid'], False),
        ([], False),
    ],
)
def test_relu_behind_a_layer(readers, relu):
    """It belongs to the layer if nothing else reads the output."""
    ops = [SimpleNamespace(name='relu', inputs=(1, 2))]
    ops += [SimpleNamespace(name=n, inputs=(3, 7)) for n in readers]
    call = SimpleNamespace(outputs=(7,))
    graph = SimpleNamespace(
        ops=ops, layers={'0': SimpleNamespace(calls=[call], roles=set())}
    )
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    view = UnitView(model, graph, Unit('0', ('0',)))
    y = model(torch.randn(5, 4))
    assert torch.equal(view.finish(y)[0], y.relu() if relu else y)


def test_mixing_rates():
    ones, zeros = torch.ones(100, 100), torch.zeros(100, 100)
    index = torch.arange(3)
    generator = seeded(0)
    a = ((ones,), dict(x=ones, i=index))
    b = ((zeros,), dict(x=zeros, i=index + 1))
    assert mix(a, b, 0.0, generator) is a
    (first,), rest = mix(a, b, 1.0, generator)
    assert not first.any() and not rest['x'].any()
    assert rest['i'] is index
    (first,), rest = mix(a, b, 0.7, generator)
    assert abs(float(first.mean()) - 0.3) < 0.02
    assert not torch.equal(first, rest['x'])


@pytest.mark.parametrize('rate', [0.0, 0.3, 0.8, 1.0])
def test_activations_are_mixed_at_the_rate(rate):
    model = torch.nn.Sequential(torch.nn.Linear(100, 4))
    convert(model)
    layer = model[0]
    quantizer = UniformQuantizer(3)
    quantizer.set_range(torch.tensor([-2.0]), torch.tensor([2.0]))
    layer.attach(acts=dict(input=quantizer))
    x = torch.randn(100, 100, generator=seeded(1))
    seen = []
    with (
        layer.listening(lambda *args: seen.append(args[2]), quantized=True),
        layer.dropping(1 - rate, seeded(0)),
    ):
        layer(x)
        layer(x)
    first, second = seen
    kept = first == quantizer(x)
    assert bool((kept | (first == x)).all())
    assert abs(float(kept.float().mean()) - rate) < 0.02
    # anew in each call
    assert torch.equal(first, second) == (rate in (0, 1))
