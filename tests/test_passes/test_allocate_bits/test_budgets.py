# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a budget is of."""

from types import SimpleNamespace

import pytest

from mmdet_ptq.passes.allocate_bits.budgets import Budget
from mmdet_ptq.passes.allocate_bits.operands import Operand
from mmdet_ptq.structures import QuantSpec

SPEC = QuantSpec('UniformQuantizer', 4)
OPERANDS = [
    Operand('weight', (('a', 'weight'),), SPEC, (3, 4, 5), (16, 8), 2),
    Operand('input', (('a', 'input'),), SPEC, (3, 4, 5), (40,)),
]
MEANS = dict(weight=3.5, input=4.0)
BASE = dict(weight=4, input=4)


def problems(kind, amount=None, operands=OPERANDS):
    budget = Budget(kind, MEANS, amount, BASE)
    session = SimpleNamespace(layers={})
    return budget.problems(session, operands, (3, 4, 5))


def test_separate_means():
    weights, inputs = problems('separate')
    assert weights.resource.budget == 3.5 and weights.resource.unit == 24
    assert weights.resource.costs.tolist() == [[48, 64, 80], [24, 32, 40]]
    assert weights.picks[1] == [((1, 0),), ((1, 1),), ((1, 2),)]
    assert inputs.resource.budget == 4 and inputs.picks == [
        [((2, 0),), ((2, 1),), ((2, 2),)]
    ]
    assert [p.name for p in problems('separate', operands=OPERANDS[:1])] == [
        'weights'
    ]


def test_a_joint_mean():
    (problem,) = problems('joint')
    assert problem.name == 'weights and inputs' and len(problem.picks) == 3
    assert problem.resource.budget == pytest.approx((24 * 3.5 + 40 * 4) / 64)


def test_bytes_of_weights(monkeypatch):
    def storage(self, layers, bits):
        return [16 * bits + 2**bits, 8 * bits + 2**bits]

    monkeypatch.setattr(Operand, 'storage', storage)
    weights, inputs = problems('bytes')
    assert weights.resource.name == 'bytes'
    assert weights.resource.costs.tolist() == [[56, 80, 112], [32, 48, 72]]
    assert weights.resource.budget == (80 + 48) / 8
    assert inputs.resource.name == 'mean bits'
    assert problems('bytes', 10.0)[0].resource.budget == 10
