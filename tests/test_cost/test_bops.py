# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bits of the operands, and their products."""

import pytest
from torch import nn

from mmdet_ptq.cost import bops, operand_bits, reg_ptq_flops
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import ChannelGroups
from mmdet_ptq.structures import LayerPlan, QuantSpec


def spec(bits):
    return QuantSpec('UniformQuantizer', bits) if bits < 32 else None


@pytest.mark.parametrize(
    ('weight', 'acts', 'expected'),
    [
        (spec(4), dict(input=spec(8)), (4, 8)),
        (spec(3), dict(input=None), (3, 32)),
        (None, dict(input=spec(6)), (32, 6)),
        (None, dict(input=None), (32, 32)),
        (None, dict(a=spec(5), b=spec(7)), (5, 7)),
        (None, dict(a=spec(5), b=None), (5, 32)),
    ],
)
def test_operand_bits(weight, acts, expected):
    assert operand_bits(LayerPlan('x', weight, acts)) == expected


def test_widths_are_known_before_there_are_ranges():
    """Two rows of 4 bits, two of 8, one of 2."""
    model = nn.Sequential(nn.Linear(4, 5))
    convert(model)
    groups = ChannelGroups(8, [4, 8, 2], channels=2, role='weight')
    model[0].attach(groups, {})
    plan = LayerPlan('x', QuantSpec('ChannelGroups', 8), dict(input=spec(6)))
    assert operand_bits(plan, model[0]) == (26 / 5, 6)


def test_more_bits_never_cost_more_than_float():
    macs = dict(a=[100, 50], b=[10])
    assert reg_ptq_flops(macs, dict(a=(8, 32), b=(4, 16))) == 155
    assert bops(macs, dict(a=(8, 32), b=(4, 16))) == 150 * 256 + 640
    # the layer whose channels meet in pairs
    assert bops(macs, dict(a=(8, 32), b=(4, 16)), dict(b=70)) == (
        150 * 256 + 700
    )
