# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges that LAPQ searches together."""

import pytest
from task_loss_kit import loss, quantize

from mmdet_ptq.passes.lapq import vertex

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def test_vertex():
    x = [2.0, 2.5, 3.0, 4.0]
    assert vertex(x, [(v - 2.7) ** 2 + 1 for v in x]) == pytest.approx(2.7)
    assert vertex(x, [(v - 9) ** 2 for v in x]) == 4.0
    # opens downwards: the least of what was seen
    assert vertex(x, [-((v - 2.1) ** 2) for v in x]) == 4.0


def test_lapq_only_gets_better():
    exponents = (2.0, 3.0, 4.0)
    singles = {
        p: loss(quantize('ChooseExponents', exponents=[p])[0])
        for p in exponents
    }
    first, session = quantize('LAPQ', exponents=exponents, powell_iters=0)
    record = session.records[0]
    assert record.loss <= min(singles.values()) * 1.0001
    model, session = quantize('LAPQ', exponents=exponents, powell_iters=1)
    record = session.records[0]
    assert record.after < record.loss
    assert loss(model) < loss(first)
    assert loss(model) == pytest.approx(record.after, rel=1e-3)
