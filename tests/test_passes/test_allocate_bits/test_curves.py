# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Curves against forwards of the changed detector."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from allocate_kit import observed

from mmdet_ptq.calibration import Images, frozen
from mmdet_ptq.detectors import RawAdapter
from mmdet_ptq.errors import NumericError, QuantConfigError
from mmdet_ptq.passes.allocate_bits.bench import Bench
from mmdet_ptq.passes.allocate_bits.choice import widths_of
from mmdet_ptq.passes.allocate_bits.curves import Curves, Measuring
from mmdet_ptq.passes.allocate_bits.objectives import Features, Predictions
from mmdet_ptq.passes.allocate_bits.operands import Wanted
from mmdet_ptq.passes.allocate_bits.trial_quantizers import (
    make_trial_quantizers,
)

BASE = dict(weight=4, input=4)


@contextmanager
def measuring(scope=('neck.1',), feature=False, count=2, most=8):
    session, _ = observed()
    wanted = Wanted(scope, BASE, dict(weight=3, input=3), most, None)
    operands = wanted.find(session)
    bench = Bench(session, make_trial_quantizers(session, operands))
    distance = Predictions(session.model)
    if feature:
        distance = Features(session.model)
    with session.cache() as cache, frozen(session.model), bench.mounted():
        images = Images(session, cache, RawAdapter(), [])
        yield Measuring(
            session,
            images,
            count,
            distance,
            bench,
            widths_of(operands),
            'feature' if feature else 'output',
        )


def all_at(one, bits):
    return [[bits] for _ in one.slots]


def test_forwards_are_those_of_the_changed_detector():
    with measuring(most=5) as one:
        exact = one.curves('exact', all_at(one, None), None)
        for i in range(len(one.slots)):
            for k, bits in enumerate((3, 4, 5)):
                widths = all_at(one, None)
                widths[i] = [bits]
                want = one.distances(f'{i} {bits}', widths)
                least = min(want, *exact.added[i, :k], 1e9)
                assert exact.added[i, k] == pytest.approx(least, rel=1e-5)
    assert exact.base == 0


def test_probes_find_the_same_to_first_order():
    with measuring() as one:
        exact = one.curves('exact', all_at(one, None), None)
        probed = one.curves('probes', all_at(one, None), 100)
    assert probed.base == 0
    ratio = probed.added / exact.added
    # 200 draws have a standard deviation of 10 %, and few bits are not small
    assert np.abs(ratio - 1)[:, 3:].max() < 0.4
    assert np.abs(ratio - 1)[:, 3:].mean() < 0.2


def test_around_other_widths():
    """With all at 4 bits, what is there adds nothing, by either way."""
    with measuring(most=5) as one:
        now = all_at(one, 4)
        exact = one.curves('exact', now, None)
        base = one.distances('now', now)
        probed = one.curves('probes', now, 50)
        assert exact.base == pytest.approx(base, rel=1e-5)
        assert probed.base == pytest.approx(base, rel=0.4)
        for curves in (exact, probed):
            assert (curves.added[:, 1] <= 1e-6 * base).all()
            assert (curves.added[:, 2] <= curves.added[:, 1]).all()
        # an input of eight bits less one is what it was without the error
        widths = [list(w) for w in now]
        widths[0] = [5]
        want = one.distances('first', widths) - base
        assert exact.added[0, 2] == pytest.approx(
            min(want, *exact.added[0, :2]), rel=1e-3, abs=1e-9
        )


def test_what_the_objective_does_not_see_is_named():
    with measuring(('backbone.3.*', 'tower'), feature=True) as one:
        now = all_at(one, None)
        for probes in (1, None):
            with pytest.raises(
                QuantConfigError,
                match=r": tower.weight, tower.input: .*'feature'",
            ):
                one.curves(f'curves {probes}', now, probes)


def test_no_finite_number_is_an_error():
    with measuring(most=4) as one:
        broken = next(s for s in one.slots if s.weight is not None)
        broken.weight = broken.weight * torch.nan
        with pytest.raises(NumericError, match=r'neck\.1\.weight: .* every'):
            one.curves('curves', all_at(one, None), None)


def test_what_was_measured_is_not_measured_again():
    with measuring(most=4) as one:
        first = one.curves('curves', all_at(one, None), 1)
        found = dict(one.session.state['measured'])
        assert sorted(found) == ['curves/0', 'curves/1']
        one.images.run = None  # which would fail
        again = one.curves('curves', all_at(one, None), 1)
    assert np.array_equal(first.added, again.added)


def test_a_choice_adds_up():
    curves = Curves(np.array([[3.0, 1.0], [np.nan, 0.5]]), 0.25)
    assert curves.of([0, 1]) == 3.75
