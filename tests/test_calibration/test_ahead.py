# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tensors that are loaded before they are asked for."""

import threading
import weakref

import pytest
import torch

from mmdet_ptq.calibration.ahead import Ahead, ahead_of


@pytest.fixture
def ahead():
    one = Ahead(torch.device('cpu'))
    yield one
    one.close()


def load(value, seen=None):
    def found():
        if seen is not None:
            seen.append((value, threading.current_thread()))
        return torch.full((3,), float(value))

    return found


def test_loads_in_a_thread(ahead):
    seen = []
    ahead.order({k: load(k, seen) for k in range(3)})
    for k in (2, 0, 1, 1):
        assert ahead.take(k).tolist() == [k] * 3
    # each once, in order, beside this thread
    assert [k for k, _ in seen] == [0, 1, 2]
    assert threading.current_thread() not in {t for _, t in seen}
    assert ahead.take(7) is None


def test_this_step_and_the_next(ahead):
    """An order outlives one other order, not two."""
    seen = []
    ahead.order({'a': load(1, seen), 'b': load(2, seen)})
    tensor = weakref.ref(ahead.take('a'))
    ahead.order({'b': load(2, seen), 'c': load(3, seen)})
    assert float(ahead.take('a')[0]) == 1 and float(ahead.take('c')[0]) == 3
    ahead.order({})
    assert ahead.take('a') is None and tensor() is None
    # of both orders, loaded once
    assert float(ahead.take('b')[0]) == 2 and len(seen) == 3
    ahead.order({})
    assert ahead.take('b') is None


def test_what_goes_is_forgotten(ahead):
    ahead.order({'a': load(1), 'b': load(2)})
    ahead.forget('a')
    assert ahead.take('a') is None and float(ahead.take('b')[0]) == 2
    ahead.forget('nobody ordered it')


def test_a_failure_is_told_to_whom_asks(ahead):
    def broken():
        raise OSError('the disk')

    ahead.order({'a': broken})
    with pytest.raises(OSError, match='the disk'):
        ahead.take('a')
    ahead.forget('a')


def test_a_cpu_needs_none():
    assert ahead_of(torch.device('cpu')) is None
