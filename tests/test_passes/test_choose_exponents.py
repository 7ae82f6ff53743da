# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Exponents chosen layer by layer."""

import pytest
import torch
from reconstruct_model import RULES, Net, batches, outputs
from task_loss_kit import inside, loss, quantize

from mmdet_ptq import quantize_detector
from mmdet_ptq.passes import ChooseExponents

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def test_choose_exponents_is_greedy():
    exponents = (1.0, 2.0, 4.0)
    _, session = quantize('ChooseExponents', exponents=exponents)
    records = session.records
    assert [r.unit for r in records][:2] == ['backbone.0', 'backbone.2']
    assert {r.exponent for r in records} <= set(exponents)
    # the loss of the last unit is that of the finished detector
    last = next(r for r in records if r.unit == 'tower')
    raw = records[-1]
    assert (
        raw.loss
        <= min(
            loss(quantize('ChooseExponents', exponents=[p])[0])
            for p in exponents
        )
        * 1.05
    )
    assert last.loss > 0
    one = quantize('ChooseExponents', exponents=[2.0])[0]
    plain = Net().eval()
    lp = dict(type='LpObserver', p=2.0)
    quantize_detector(
        plain,
        batches(),
        dict(
            bits='w3a3',
            rules=RULES,
            passes=[
                dict(type='Observe', observer=lp),
                dict(type='SetRanges', weight_observer=lp),
            ],
        ),
    )
    # with one exponent nothing is left to choose
    for a, b in zip(
        outputs(one, batches()), outputs(plain, batches()), strict=True
    ):
        assert torch.equal(a, b)


def test_what_a_unit_cannot_change_is_not_computed():
    class Whole:
        """Every layer in every call."""

        def __init__(self, task):
            self.task = task

        def __call__(self, layers, changed=None):
            return self.task(layers)

    def look(session, task, kind):
        start = task.prefix.computed
        ChooseExponents((1.0, 2.0, 4.0)).choose(session, kind(task))
        return session.records, task.prefix.computed - start

    records, computed = inside(lambda s, t: look(s, t, lambda one: one))
    whole, every = inside(lambda s, t: look(s, t, Whole))
    assert records == whole
    # units in turn: half of the detector on the mean, and the head often
    assert computed < 0.75 * every
