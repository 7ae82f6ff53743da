# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges chosen by the loss on the detector's outputs."""

import pytest
import torch
from reconstruct_model import RULES, Net, batches, outputs

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.passes.lapq import vertex

LP = dict(type='LpObserver', p=2.4)
pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def quantize(kind, bits='w3a3', observer=LP, **args):
    model, data = Net().eval(), batches()
    session = quantize_detector(
        model,
        data,
        dict(
            bits=bits,
            rules=RULES,
            passes=[
                dict(type='Observe', observer=observer),
                dict(type='SetRanges'),
                dict(type=kind, **args),
            ],
        ),
    )
    return model, session


def loss(model):
    """What the passes minimise, on the images that they see."""
    data = batches()[:8]
    total = 0.0
    exact, found = outputs(Net().eval(), data), outputs(model, data)
    for i in range(0, len(exact), 2):
        pair = zip(exact[i : i + 2], found[i : i + 2], strict=True)
        errors = torch.cat([(x - y).square().flatten() for x, y in pair])
        total += float(errors.mean())
    return total / len(data)


def test_vertex():
    x = [2.0, 2.5, 3.0, 4.0]
    assert vertex(x, [(v - 2.7) ** 2 + 1 for v in x]) == pytest.approx(2.7)
    assert vertex(x, [(v - 9) ** 2 for v in x]) == 4.0
    # opens downwards: the least of what was seen
    assert vertex(x, [-((v - 2.1) ** 2) for v in x]) == 4.0


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


@pytest.mark.parametrize(
    ('kind', 'args', 'match'),
    [
        ('ChooseExponents', dict(exponents=[]), 'exponents'),
        ('ChooseExponents', dict(exponents=[0.0]), 'above 0'),
        ('ChooseExponents', dict(images=0), 'images'),
        ('ChooseExponents', dict(loss=dict(type='Detect')), 'DetectionLoss'),
        (
            'ChooseExponents',
            dict(observer=dict(type='MinMaxObserver')),
            'LpObserver',
        ),
        ('LAPQ', dict(exponents=[2.0, 3.0]), '3 or more'),
        ('LAPQ', dict(powell_iters=-1), 'powell_iters'),
        ('LAPQ', dict(width=1.0), 'width'),
    ],
)
def test_bad_arguments(kind, args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        quantize(kind, **args)
