# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Units recorded all at once, or each in its turn."""

from contextlib import contextmanager
from itertools import pairwise

import pytest
from reconstruct_model import (
    Net,
    batches,
    equal,
    reconstruct,
    stopped_and_resumed,
)

from mmdet_ptq.calibration.samples import collect, size_of
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct import reconstruct as module
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.records import UnitRecord

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
LEARN = [dict(type='AdaRound'), dict(type='LearnedSteps')]
ORDERS = ('sequential', 'parallel')
UNITS = ['backbone.0', 'backbone.2', 'backbone.3', 'neck.0', 'neck.1', 'tower']


@pytest.mark.parametrize(
    'args',
    [
        dict(learn=LEARN, drop_prob=0.5),
        dict(learn=[dict(type='LearnedWeights')], unit='layer'),
        dict(activations=False, batch_size=3),
    ],
    ids=str,
)
def test_parallel_is_sequential_to_the_bit(args, monkeypatch):
    args = dict(args, iters=10, input_distribution='float')
    (one, first), (two, second) = (
        reconstruct(order=order, **args) for order in ORDERS
    )
    assert equal(one, two)
    for ours, theirs in zip(first.records, second.records, strict=True):
        assert ours.curve == theirs.curve
        assert ours.after == theirs.after
    assert any(r.kept for r in first.records)

    # and each unit by itself: a float forward, and one of a prefix that
    # is not quantized
    def one_by_one(images, views, mixed):
        assert len(views) == 1

        @contextmanager
        def plain():
            with float_mode(images.model):
                yield

        return [collect(images, view, None, mixed, plain) for view in views]

    monkeypatch.setattr(module, 'collect_float', one_by_one)
    assert equal(one, reconstruct(**args)[0])


@pytest.mark.parametrize('order', ORDERS)
def test_number_of_forwards(monkeypatch, order):
    count = [0]
    forward = Net.forward

    def counted(self, *args, **kwargs):
        count[0] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Net, 'forward', counted)
    found = []
    for iters in (0, 1):
        count[0] = 0
        args = dict(order=order, iters=iters, data=batches(5))
        reconstruct(input_distribution='float', **args)
        found.append(count[0])
    forwards = found[1] - found[0]
    assert forwards == (5 if order == 'parallel' else 5 * len(UNITS))


@pytest.mark.parametrize('stop_at', range(2, 2 + len(UNITS)))
def test_resume_after_any_unit(stop_at):
    args = dict(learn=LEARN, drop_prob=0.5, iters=3)
    args.update(order='parallel', input_distribution='float')
    whole, expected, _ = stopped_and_resumed(None, **args)
    model, session, _ = stopped_and_resumed(stop_at, **args)
    assert equal(model, whole)
    assert [r.unit for r in session.records] == UNITS
    for ours, theirs in zip(session.records, expected.records, strict=True):
        assert ours.curve == theirs.curve


def test_cache_holds_the_units_to_come(monkeypatch):
    """In memory up to the bound, and what is done is given back."""
    held = []

    def fit(self, learners, acts, k):
        cache = self.images.cache
        held.append(cache.in_memory + cache.on_disk)
        assert cache.in_memory <= cache.limit
        assert cache.on_disk or k
        sizes.append(size_of([s.entries() for s in self.samples.values()]))
        constant[:] = [size_of(list(self.images._kept.values()))]
        return UnitRecord(self.view.name, 0.0, 0.0, True)

    sizes, constant = [], []
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, 'fit', fit)
        small = dict(calibration=dict(cache='200KiB'))
        args = dict(order='parallel', input_distribution='float', iters=5)
        reconstruct(**args, **small)
    freed = [a - b for a, b in pairwise(held)]
    assert len(held) == len(UNITS) and freed == sizes[:-1]
    assert held[-1] == sizes[-1] + constant[0]
    assert held[0] > 2 * 200 * 1024
    assert equal(reconstruct(**args)[0], reconstruct(**args, **small)[0])


def test_float_overflow_names_the_unit(monkeypatch):
    class Overflowing(Net):
        def __init__(self):
            super().__init__()
            self.tower.bias.data[0] = float('inf')

    monkeypatch.setattr('reconstruct_model.Net', Overflowing)
    init = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe'),
        dict(type='SetRanges'),
    ]
    with pytest.raises(NumericError, match=r'tower.* image 0'):
        reconstruct(
            iters=1,
            init=init,
            order='parallel',
            input_distribution='float',
        )


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(order='random', input_distribution='float'), 'sequential'),
        (dict(order='parallel'), "input_distribution='float'"),
        (
            dict(
                order='parallel',
                input_distribution='float',
                losses=[dict(type='L2Loss'), dict(type='DetectionLoss')],
            ),
            "units' outputs",
        ),
        (
            dict(
                order='parallel',
                input_distribution='float',
                losses=[dict(type='FisherLoss')],
            ),
            'no gradient',
        ),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        reconstruct(**args)


def test_float_targets_of_no_loss_cost_nothing(monkeypatch):
    """Without a loss on the outputs nothing is run for targets."""
    found = []
    for losses in ([dict(type='L2Loss')], [dict(type='DetectionLoss')]):
        seen = []

        def look(self, learners, acts, k, seen=seen):
            seen.append(self.images._kept[0][0][2])
            return UnitRecord(self.view.name, 0.0, 0.0, True)

        monkeypatch.setattr(Trainer, 'fit', look)
        reconstruct(losses=losses, iters=1, data=batches(3))
        found.append(len(seen[0]))
    assert found == [0, 1]
