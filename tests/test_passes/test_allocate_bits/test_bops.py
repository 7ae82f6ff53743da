# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bit operations of layers that share what they read."""

from dataclasses import replace

import numpy as np
import pytest
from allocate_kit import planned
from two_levels import RULES, Tiny, batches

from mmdet_ptq.cost import bops, count_macs, operand_bits
from mmdet_ptq.errors import BudgetError, QuantConfigError
from mmdet_ptq.passes.allocate_bits.bops import bops_problem
from mmdet_ptq.passes.allocate_bits.operands import Wanted
from mmdet_ptq.passes.allocate_bits.problems import cost_of_widths

BASE = dict(weight=4, input=4)
WIDTHS = [3, 4, 5]


def made(rules=RULES, amount=None):
    session = planned(rules=rules, net=Tiny, data=batches())
    wanted = Wanted(('*',), BASE, dict(weight=3, input=3), 5, None)
    operands = wanted.find(session)
    problem = bops_problem(session, operands, WIDTHS, BASE, amount)
    macs = count_macs(session.model, session.graph)
    return session, operands, problem, macs


def test_one_width_costs_what_the_report_says():
    session, operands, problem, macs = made()
    bits = {n: operand_bits(session.plan.layers[n]) for n in macs}
    allocated = {n for one in operands for n, _ in one.holders}
    some = {n: m for n, m in macs.items() if n in allocated}
    assert problem.resource.budget == bops(some, bits)
    assert cost_of_widths(problem, [1] * len(operands)) == bops(some, bits)
    assert made(amount=7.0)[2].resource.budget == 7


def test_readers_of_one_input_are_one_decision():
    _, operands, problem, macs = made()
    at = {port: i for i, one in enumerate(operands) for port in one.holders}
    shared = at['side', 'input']
    assert shared == at['bbox_head.0', 'input']
    options, costs = next(
        (o, c)
        for o, c in zip(problem.picks, problem.resource.costs, strict=True)
        if any(unit == shared for unit, _ in o[0])
    )
    assert len(options) == 9  # a width for both weights, one for the input
    both = sum(macs['side']) + sum(macs['bbox_head.0'])
    for picks, cost in zip(options, costs, strict=True):
        bits = {unit: WIDTHS[column] for unit, column in picks}
        assert bits[at['side', 'weight']] == bits[at['bbox_head.0', 'weight']]
        assert cost == both * bits[shared] * bits[at['side', 'weight']]


def test_pinned_operands_count_with_their_bits():
    rules = [*RULES, dict(match='bbox_head.2', act=dict(bits=8))]
    _, operands, problem, macs = made(rules)
    at = {port: i for i, one in enumerate(operands) for port in one.holders}
    assert ('bbox_head.2', 'input') not in at
    unit = at['bbox_head.2', 'weight']
    row = [o[0] for o in problem.picks].index(((unit, 0),))
    macs = sum(macs['bbox_head.2'])
    want = [macs * 8 * bits for bits in WIDTHS]
    assert problem.resource.costs[row, :3].tolist() == want
    table = problem.within(np.zeros((len(operands), 3))).distortions
    assert np.isinf(table[row, 3:]).all()


def test_no_common_width_is_an_error():
    subset = dict(type='SubsetQuantizer', granularity='channel')
    rules = [*RULES, dict(match='side', weight=subset)]
    session = planned(rules=rules, net=Tiny, data=batches())
    wanted = Wanted(('*',), BASE, dict(weight=4, input=4), 8, None)
    with pytest.raises(QuantConfigError, match='has 2, 3, 4'):
        wanted.find(session)
    wanted = Wanted(('*',), BASE, dict(weight=3, input=3), 8, None)
    operands = [
        replace(o, widths=(6, 7)) if o.name == 'bbox_head.0.weight' else o
        for o in wanted.find(session)
    ]
    with pytest.raises(BudgetError, match='have none in common'):
        bops_problem(session, operands, list(range(3, 9)), BASE, None)
