# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are quantized for a while."""

import pytest
import torch
from torch import nn

from mmdet_ptq.layers import convert, float_mode, quant_layers, quantizing
from mmdet_ptq.quantizers import UniformQuantizer


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    convert(model)
    for layer in model:
        layer.attach(UniformQuantizer(4, role='weight'))
        layer.weight_quantizer.set_range(-torch.ones(1), torch.ones(1))
    return model


def flags(model):
    return [(m.quantize_weight, m.quantize_act) for m in model]


@pytest.mark.parametrize('by_name', [False, True])
def test_exactly_these_are_quantized(model, by_name):
    given = quant_layers(model) if by_name else model
    with quantizing(given, {'0', '2'}, ['1', '2']):
        expected = [(True, False), (False, True), (True, True)]
        assert flags(model) == expected
        with pytest.raises(KeyError), quantizing(given, ['1'], []):
            assert flags(model) == [(0, 0), (1, 0), (0, 0)]
            raise KeyError
        with float_mode(given, weight=False):
            # float ones stay float
            assert flags(model) == [(1, 0), (0, 0), (1, 0)]
        assert flags(model) == expected
    assert flags(model) == [(True, True)] * 3


def test_what_cannot_be(model):
    with pytest.raises(ValueError, match='1x'), quantizing(model, [], ['1x']):
        pass
    model[1].bake()
    with quantizing(model, ['1'], []):
        assert flags(model)[1] == (True, False)
    with (
        pytest.raises(RuntimeError, match='baked'),
        quantizing(model, ['0'], []),
    ):
        pass
    assert flags(model) == [(True, True)] * 3
