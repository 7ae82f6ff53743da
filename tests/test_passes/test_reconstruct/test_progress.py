# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Stopped between units, and gone on."""

import pytest
from reconstruct_model import LEARN, UNITS, equal, stopped_and_resumed

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize('stop_at', [3, 5])
def test_resume_is_the_uninterrupted_run(stop_at):
    args = dict(learn=LEARN, drop_prob=0.5, iters=20)
    whole, expected, _ = stopped_and_resumed(None, **args)
    model, session, store = stopped_and_resumed(stop_at, **args)
    done = stop_at - 1
    assert equal(model, whole)
    for ours, theirs in zip(session.records, expected.records, strict=True):
        assert ours.curve == theirs.curve
    assert store.count == stop_at + len(expected.records) - done


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


def test_the_model_is_saved_once():
    args = dict(learn=LEARN, drop_prob=0.5, iters=3)
    _, _, store = stopped_and_resumed(None, **args)
    # of passes, of units, and of the end
    assert len(store.models) > len(UNITS)
    assert set(store.models) == {1}


def test_a_stop_after_a_stop():
    args = dict(learn=LEARN, drop_prob=0.5, iters=3)
    whole, _, _ = stopped_and_resumed(None, **args)
    model, _, _ = stopped_and_resumed(2, again=(3, 5), **args)
    assert equal(model, whole)
