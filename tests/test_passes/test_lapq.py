# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges that LAPQ searches together."""

import numpy as np
import pytest
import torch
from task_loss_kit import inside, loss, quantize

from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes.lapq import LAPQ, Ranges, vertex, weights_once

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


@pytest.mark.parametrize('powell_iters', [0, 1])
def test_the_loss_is_that_of_corrected_biases(powell_iters):
    args = dict(exponents=(2.0, 3.0, 4.0), powell_iters=powell_iters)
    then = [dict(type='CorrectBias')]
    model, session = quantize('LAPQ', then=then, **args)
    record = session.records[0]
    assert loss(model) == pytest.approx(record.after, rel=1e-3)


def test_evaluations_are_bounded_and_counted():
    exponents = (2.0, 3.0, 4.0)

    def records(**args):
        def look(session, task):
            said = []
            session.progress = lambda *step: said.append(step)
            LAPQ(exponents, **args).choose(session, task)
            return session.records[0], said

        return inside(look, images=2)

    short, said = records(powell_iters=3, evaluations=5)
    # exponents and the vertex, the start of the search, and its own
    assert short.evaluations == 3 + 1 + 1 + 5
    assert [s[2:] for s in said] == [
        *((i, 4) for i in range(4)),
        *((i, 5) for i in range(5)),
    ]
    whole, said = records()
    assert whole.after < short.after <= short.loss == whole.loss
    steps = [s[2:] for s in said if s[0] == 'powell']
    assert steps == [(i, 1000) for i in range(whole.evaluations - 5)]
    # the best that was seen is what is left, whenever it ends
    model, session = quantize('LAPQ', exponents=exponents, evaluations=20)
    after = session.records[0].after
    assert loss(model) == pytest.approx(after, rel=1e-3)


def test_a_stretched_range_is_the_range_times_a_factor():
    def look(session, task):
        ranges = Ranges(session)
        first = [q.range() for q in ranges.quantizers]
        assert ranges.stretch(np.ones(len(first))) == set()
        factors = np.ones(len(first))
        at = next(
            i
            for i, q in enumerate(ranges.quantizers)
            if q is session.layers['neck.0'].act_quantizers['input']
        )
        factors[at] = 0.75
        moved = ranges.stretch(factors)
        for i, (q, (low, high)) in enumerate(
            zip(ranges.quantizers, first, strict=True)
        ):
            factor = 0.75 if i == at else 1
            width = (high - low) * factor
            assert torch.allclose(torch.sub(*q.range()[::-1]), width)
        return moved, ranges.stretch(factors), ranges.stretch(factors * 0 + 1)

    moved, again, back = inside(look)
    # one quantizer of a tensor that both read
    assert 'neck.0' in moved
    assert again == set()
    assert back == moved


def test_held_weights_are_those_of_each_forward():
    def look(session, task):
        names = set(session.layers)
        before = named_tensors(session.model)
        whole = task(names)
        with weights_once(session):
            held = task(names)
            ranges = Ranges(session)
            factors = np.full(len(ranges.quantizers), 0.9)
            ranges.stretch(factors)
            stretched = task(names)
        assert whole == held != stretched == task(names)
        after = named_tensors(session.model)
        return before.keys() == after.keys()

    assert inside(look)
