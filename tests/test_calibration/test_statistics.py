# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Statistics against the data they were fed, and through a resume file."""

import io

import pytest
import torch
from torch import nn

from mmdet_ptq.calibration import Statistics
from mmdet_ptq.layers import convert, quant_layers
from mmdet_ptq.observers import end_batch
from mmdet_ptq.quantizers import UniformQuantizer

GROUPS = [[('0', 'input'), ('2', 'input')], [('1', 'input')]]
CFG = dict(type='MinMaxObserver')


@pytest.fixture
def layers():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(3)))
    convert(model)
    found = quant_layers(model)
    shared = UniformQuantizer(8, per_level=True)
    own = UniformQuantizer(8, granularity='channel')
    weights = [
        UniformQuantizer(8, granularity='channel', role='weight')
        for _ in found
    ]
    for (name, layer), weight in zip(found.items(), weights, strict=True):
        quantizer = own if name == '1' else shared
        layer.attach(weight, dict(input=quantizer), 1 if name == '1' else 2)
    return found


def filled(layers, means=True):
    stats = Statistics()
    device = torch.get_default_device()
    stats.start(layers, GROUPS, lambda _: CFG, means, device)
    shared, own = stats.observers
    shared.observe(torch.tensor([-1.0, 2.0]), 0)
    shared.observe(torch.tensor([-3.0, 4.0]), 1)
    own.observe(torch.arange(8.0).reshape(1, 4, 2, 1))
    end_batch(stats.observers)
    if means:
        stats.means.observe('1', torch.ones(1, 4, 2, 1))
    return stats


def test_one_observer_for_each_group(layers):
    stats = filled(layers)
    assert stats.of(('0', 'input')) is stats.of(('2', 'input'))
    assert stats.of(('1', 'input')) is stats.observers[1]
    assert stats.of(('9', 'input')) is None
    assert stats.of(('0', 'input')).low.tolist() == [[-1.0], [-3.0]]
    assert stats.of(('1', 'input')).high.tolist() == [[1.0, 3.0, 5.0, 7.0]]


def test_rows_have_to_be_those_of_the_quantizer(layers):
    stats, port = filled(layers), ('1', 'input')
    same = UniformQuantizer(3, granularity='channel')
    assert stats.of_rows(port, same) is stats.of(port)
    assert stats.of_rows(port, UniformQuantizer(3)) is None


@pytest.mark.parametrize('means', [False, True])
def test_resume(layers, means):
    stats, file = filled(layers, means), io.BytesIO()
    torch.save(stats.state_dict(), file)
    file.seek(0)
    other = Statistics()
    # a quantizer that went in the meantime does not matter
    layers['1'].set_quantizer('input', None)
    other.load_state_dict(
        torch.load(file, weights_only=True),
        layers,
        torch.get_default_device(),
    )
    assert other.groups == stats.groups
    for ours, theirs in zip(other.observers, stats.observers, strict=True):
        assert ours.granularity == theirs.granularity
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value)
    assert (other.means is not None) == means
    if means:
        assert other.means.counts == stats.means.counts == {'1': 2}
        assert torch.equal(other.means.sums['1'], stats.means.sums['1'])


def test_a_resumed_run_searches_where_it_would_have(layers):
    stats = Statistics()
    lp = dict(type='LpObserver')
    device = torch.get_default_device()
    stats.start(layers, GROUPS, lambda _: lp, False, device)
    stats.observers[0].observe(torch.tensor([-1.0, 2.0]), 0)
    other = Statistics()
    other.load_state_dict(stats.state_dict(), layers, torch.device('meta'))
    assert [o.counts.device.type for o in other.observers] == ['meta'] * 2
    assert other.observers[0].low.tolist()[0] == [-1.0]
    # and a process without images where the others do
    other.start(layers, GROUPS, lambda _: lp, False, torch.device('meta'))
    other.observers[0].merge([stats.observers[0].state_dict()])
    assert other.observers[0].counts.is_meta


def test_dropping_and_clearing(layers):
    stats = filled(layers)
    stats.drop(GROUPS[0])
    assert stats.groups == GROUPS[1:] and len(stats.observers) == 1
    stats.clear()
    assert not stats.groups and not stats.observers and stats.means is None
