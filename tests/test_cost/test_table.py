# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Sums over parts, by hand."""

import pytest

from mmdet_ptq.cost import mean_bits, part_table


def layer(part, bits, size, **elements):
    """A layer of ``size`` MACs, a weight of as many parameters."""
    return dict(
        part=part,
        macs=10 * size,
        bops=10 * size * bits[0] * bits[1],
        calls=1,
        bits=list(bits),
        elements=elements,
        params=size,
        bytes=dict(float=4.0 * size, quantized=bits[0] * size / 8),
    )


COST = dict(
    layers=dict(
        stem=layer('stem', (8, 8), 8, weight=8, input=100),
        conv=layer('backbone', (4, 4), 80, weight=80, input=50),
        linear=layer('backbone', (4, 4), 16, weight=16, input=50),
        product=layer('backbone', (6, 4), 0, a=20, b=30),
        cls=layer('prediction', (32, 32), 4, weight=4, input=0),
    ),
    bops=dict(float=0, quantized=10 * (8 * 64 + 96 * 16 + 4 * 1024) + 77),
    # norms have 10 parameters
    bytes=dict(float=4.0 * 118, quantized=8 + 48 + 16 + 40.0),
)


def test_rows_sum_up_to_all():
    rows = part_table(COST)
    assert list(rows) == ['stem', 'backbone', 'prediction', 'other', 'all']
    assert rows['backbone'] == dict(
        layers=3,
        bits={'4 x 4': 2, '6 x 4': 1},
        macs=960,
        bops=10 * 96 * 16,
        params=96,
        float=384,
        quantized=48,
    )
    assert rows['prediction']['bits'] == {'float': 1}
    assert rows['other']['bops'] == 77
    assert rows['other']['params'] == 10
    whole = rows.pop('all')
    assert whole['bops'] == COST['bops']['quantized']
    assert whole['float'] == COST['bytes']['float']
    for key, value in whole.items():
        if key != 'bits':
            assert value == sum(row[key] for row in rows.values())


def test_mean_bits_of_weights_and_inputs():
    weights = (8 * 8 + 4 * 96 + 32 * 4) / 108
    inputs = (8 * 100 + 4 * 100 + 6 * 20 + 4 * 30) / 250
    assert mean_bits(COST) == pytest.approx((weights, inputs))
    assert mean_bits(dict(layers={})) == (0, 0)
