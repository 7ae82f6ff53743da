# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What every observer promises."""

import io
import itertools
from collections import Counter

import pytest
import torch
from crossings import crossings
from observer_kit import ALL, feed, grains, new

from mmdet_ptq.errors import CalibrationError, NumericError
from mmdet_ptq.observers import (
    LpObserver,
    MovingAverageObserver,
    PercentileObserver,
    end_batch,
)
from mmdet_ptq.observers.batch import ranges_together
from mmdet_ptq.quantizers import Granularity
from mmdet_ptq.registry import OBSERVERS, build_from

ORDERLESS = [name for name in ALL if name != 'moving']


def images(count=6, seed=0):
    torch.manual_seed(seed)
    return [
        torch.randn(1, 4, 9, 5 + i) * 10.0 ** (i - 3) + i for i in range(count)
    ]


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@grains
@pytest.mark.parametrize('name', ORDERLESS)
def test_order_does_not_matter(name, kind, size):
    batch = images(4)
    found = []
    for order in itertools.permutations(batch):
        observer, quantizer = new(name, kind, size)
        found.append(feed(observer, order).ranges(quantizer))
    for low, high in found[1:]:
        assert torch.equal(low, found[0][0])
        assert torch.equal(high, found[0][1])


@grains
@pytest.mark.parametrize('name', ORDERLESS)
def test_merge_is_a_single_process(name, kind, size):
    batch = images(6)
    single, quantizer = new(name, kind, size)
    want = feed(single, batch).ranges(quantizer)
    parts = [batch[:1], batch[1:4], batch[4:], []]
    for order in itertools.permutations(parts):
        ranks = [feed(new(name, kind, size)[0], p) for p in order]
        ranks[0].merge([r.state_dict() for r in ranks[1:]])
        got = ranks[0].ranges(quantizer)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
        assert ranks[0].count.equal(single.count)


@grains
@pytest.mark.parametrize('name', ALL)
def test_state_round_trip(name, kind, size):
    observer, q = new(name, kind, size, levels=2)
    feed(observer, images(3), 0)
    feed(observer, images(2, seed=1), 1)
    stream = io.BytesIO()
    torch.save(observer.state_dict(), stream)
    stream.seek(0)
    state = torch.load(stream, weights_only=True)
    other = new(name, kind, size, levels=2)[0]
    other.load_state_dict(state)
    assert same_state(other.state_dict(), observer.state_dict())
    # a resumed run goes on like an uninterrupted one
    more = images(2, seed=2)
    got = feed(other, more, 1).ranges(q)
    want = feed(observer, more, 1).ranges(q)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize('name', ALL)
def test_levels_without_data_take_the_union(name):
    observer, q = new(name, levels=4)
    feed(observer, [torch.tensor([-1.0, 0.0, 2.0])] * 2, 0)
    feed(observer, [torch.tensor([-3.0, 0.0, 1.0])] * 2, 2)
    low, high = observer.ranges(q)
    assert low.shape == high.shape == (4, 1)
    for empty in (1, 3):
        assert low[empty] == torch.minimum(low[0], low[2])
        assert high[empty] == torch.maximum(high[0], high[2])
    assert low[2] < low[0] and high[0] > high[2]
    q.set_range(low, high)


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize(
    'values',
    [
        [0.0],
        [3.0],
        [-3.0],
        [0.0, 0.0],
        [5.0, 5.0],
        [-1e-42, 1e-42],
        [3e38, -3e38],
        [1e-30] * 9,
        [-4.0, -2.0],
    ],
)
def test_degenerate_data(name, values):
    observer, q = new(name)
    observer.observe(torch.empty(0, 4))
    assert not observer.seen
    x = torch.tensor(values)
    observer.observe(x)
    assert observer.seen
    low, high = observer.ranges(q)
    assert torch.isfinite(low).all() and torch.isfinite(high).all()
    assert (low <= high).all()
    q.set_range(low, high)
    assert torch.isfinite(q.eval()(x)).all()


@pytest.mark.parametrize('name', ALL)
def test_no_data(name):
    observer, q = new(name)
    with pytest.raises(CalibrationError, match='no data'):
        observer.ranges(q)
    observer.merge([new(name)[0].state_dict()])
    assert not observer.seen


@pytest.mark.parametrize('name', ALL)
def test_dtypes_and_no_references(name):
    observer, q = new(name, 'channel')
    x = torch.randn(2, 4, 3, 3)
    observer.observe(x.to(torch.bfloat16).requires_grad_())
    before = observer.state_dict()
    observer.observe(x[:0])
    x.zero_()
    assert same_state(before, observer.state_dict())
    low, _ = observer.ranges(q)
    assert not low.requires_grad and low.dtype == torch.float32


def test_mistakes_in_use():
    observer, _ = new('minmax', 'channel', levels=2)
    observer.observe(torch.randn(1, 4, 2))
    with pytest.raises(CalibrationError, match='earlier ones had 4'):
        observer.observe(torch.randn(1, 5, 2))
    with pytest.raises(IndexError, match='level 2 of 2'):
        observer.observe(torch.randn(1, 4, 2), 2)
    with pytest.raises(ValueError, match='floats'):
        observer.observe(torch.zeros(1, 4, dtype=torch.int64))
    for bad in (float('nan'), float('inf')):
        observer.observe(torch.full((1, 4), bad))
        with pytest.raises(NumericError, match='NaN or Inf'):
            observer.end_image()
    with pytest.raises(CalibrationError, match='2'):
        new('minmax', 'channel')[0].load_state_dict(observer.state_dict())
    other, _ = new('minmax', 'channel', levels=2)
    other.observe(torch.randn(1, 3))
    with pytest.raises(CalibrationError, match='different shapes'):
        observer.merge([other.state_dict()])
    with pytest.raises(ValueError, match='positive'):
        observer.bind(Granularity(), 0)


@pytest.mark.parametrize(
    'cls, kwargs, message',
    [
        (MovingAverageObserver, dict(momentum=0.0), 'momentum'),
        (PercentileObserver, dict(percentile=0.5), 'percentile'),
        (PercentileObserver, dict(percentile=1.01), 'percentile'),
        (LpObserver, dict(p=0.0), 'p must'),
        (LpObserver, dict(steps=1), 'steps'),
        (LpObserver, dict(search='3d'), '1d, 2d, auto, upper'),
    ],
)
def test_wrong_arguments(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


def test_registered():
    for name in (
        'MinMaxObserver',
        'MovingAverageObserver',
        'AverageMinMaxObserver',
        'PercentileObserver',
        'LpObserver',
    ):
        build_from(OBSERVERS, dict(type=name))
    assert build_from(OBSERVERS, dict(type='LpObserver', p=2.0)).p == 2.0


@grains
@pytest.mark.parametrize('name', ALL)
def test_a_batch_waits_for_the_device_once(name, kind, size):
    # permuted, so that a sample is gathered by strides
    wide = torch.randn(1, 300, 200, 4).permute(0, 3, 1, 2)
    maps = [wide, torch.randn(1, 4, 9), torch.randn(1, 4, 5)]

    with crossings() as found:
        observers = [new(name, kind, size, levels=2)[0] for _ in range(3)]
        found.clear()
        # first data, histograms that grow, and some that do not
        for scale in (1, 1000, 0.9):
            for observer in observers:
                for x, level in zip(maps, (0, 1, 1), strict=True):
                    observer.observe(x * scale, level)
            assert end_batch(observers) == []
            assert found == dict(cpu=1)
            found.clear()


@grains
@pytest.mark.parametrize('name', ALL)
def test_ranges_of_many_wait_for_the_device_once(name, kind, size):
    with crossings() as found:
        made = [new(name, kind, size, levels=2) for _ in range(3)]
        for i, (observer, _) in enumerate(made):
            observer.observe(torch.randn(1, 4, 300) * 9**i, 1)
        end_batch([observer for observer, _ in made])
        found.clear()
        together = ranges_together(made)
    # how many points there are is asked on a CPU alone
    assert not found - Counter(_local_scalar_dense=9, cpu=1)
    alone = [observer.ranges(quantizer) for observer, quantizer in made]
    for one, other in zip(together, alone, strict=True):
        assert torch.stack(one).equal(torch.stack(other))


def test_ends_of_a_batch_name_what_is_not_finite():
    observers = [new(name)[0] for name in ALL]
    for i, observer in enumerate(observers):
        observer.observe(torch.tensor([1.0, float('nan') if i == 3 else 2.0]))
    assert end_batch(observers) == [observers[3]]
    # nothing has come since
    assert end_batch(observers) == []
