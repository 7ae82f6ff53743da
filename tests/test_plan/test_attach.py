# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers of a plan written by hand, on twins."""

import pytest
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import convert
from mmdet_ptq.plan import attach
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec

U = 'UniformQuantizer'


@pytest.fixture
def model():
    found = nn.Sequential(
        nn.Conv2d(8, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 2),
        nn.Linear(4, 2),
    )
    convert(found)
    return found


def plan_of(weights, acts, groups):
    names = map(str, range(3))
    return QuantPlan(
        {
            n: LayerPlan(n, weight, dict(input=act))
            for n, weight, act in zip(names, weights, acts, strict=True)
        },
        groups,
    )


def test_what_layers_are_given(model):
    weight, act = QuantSpec(U, 3), QuantSpec(U, 5)
    plan = plan_of(
        [weight, weight, None],
        [act, act, None],
        [[('0', 'input'), ('1', 'input')]],
    )
    attach(model, plan, {'0': 1, '1': 4})
    first, second, third = model
    assert first.weight_quantizer.bits == second.weight_quantizer.bits == 3
    assert first.weight_quantizer is not second.weight_quantizer
    # output channels of a transposed convolution come second
    assert first.weight_quantizer.granularity.axis == 0
    assert second.weight_quantizer.granularity.axis == 1
    # one tensor, one quantizer
    shared = first.act_quantizers['input']
    assert shared is second.act_quantizers['input'] and shared.bits == 5
    assert third.weight_quantizer is None and not third.act_quantizers
    assert (first.levels, second.levels, third.levels) == (1, 4, 1)
    # what was there before goes
    attach(model, plan_of([None] * 3, [None] * 3, []), {})
    assert first.weight_quantizer is None and not first.act_quantizers
    assert second.levels == 1


def test_groups_of_a_convolution(model):
    own = QuantSpec(U, 4, dict(granularity='group', group_size='conv'))
    attach(
        model, plan_of([None] * 3, [own, None, None], [[('0', 'input')]]), {}
    )
    granularity = model[0].act_quantizers['input'].granularity
    assert granularity.group_size == 8 // 2
    plan = plan_of([None] * 3, [None, None, own], [[('2', 'input')]])
    with pytest.raises(QuantConfigError, match=r'^2: .*give group_size'):
        attach(model, plan, {})


def test_mistakes_name_the_tensor(model):
    plan = plan_of([QuantSpec('Unifrm', 4), None, None], [None] * 3, [])
    with pytest.raises(QuantConfigError, match=r"0\.weight: .*'Unifrm'"):
        attach(model, plan, {})
    plan = plan_of(
        [None] * 3,
        [QuantSpec(U, 4, dict(x=1)), None, None],
        [[('0', 'input')]],
    )
    with pytest.raises(QuantConfigError, match=r"0\.input: .*'x'"):
        attach(model, plan, {})
