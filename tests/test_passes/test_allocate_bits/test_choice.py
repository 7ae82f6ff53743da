# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Columns as widths, and what they come to."""

from math import inf, nan

import numpy as np

from mmdet_ptq.passes.allocate_bits.choice import Choice, widths_of
from mmdet_ptq.passes.allocate_bits.curves import Curves
from mmdet_ptq.passes.allocate_bits.operands import Operand
from mmdet_ptq.passes.allocate_bits.problems import WidthProblem
from mmdet_ptq.solvers import Resource
from mmdet_ptq.structures import QuantSpec

SPEC = QuantSpec('UniformQuantizer', 4)
OPERANDS = [
    Operand('weight', (('a', 'weight'),), SPEC, (3, 5), (2, 1), 2),
    Operand('input', (('a', 'input'),), SPEC, (4, 5), (7,)),
]


def test_a_choice():
    assert widths_of(OPERANDS) == [3, 4, 5]
    picks = [[((u, k),) for k in range(3)] for u in range(3)]
    problem = WidthProblem(
        'all', Resource.mean_bits([2, 1, 7], [3, 4, 5], 4), picks
    )
    added = np.array([[1.0, nan, 0.5], [2.0, nan, 1.0], [nan, 8.0, 4.0]])
    curves = Curves(added, 0.125)
    choice = Choice.of(OPERANDS, [problem], curves, [0, 2, 1], 'dp')
    assert choice.solver == 'dp'
    assert choice.widths == [[3, 5], [4]]
    assert choice.spent == [(2 * 3 + 5 + 7 * 4) / 10]
    assert choice.predicted == 1.0 + 1.0 + 8.0 + 0.125
    assert choice.measured == inf
    assert choice.at(2.0).measured == 2 and choice.at(nan).measured == inf
