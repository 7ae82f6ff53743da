# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Histograms with bins of powers of two."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet_ptq.observers import LpObserver
from mmdet_ptq.observers import histogram as module
from mmdet_ptq.observers.sampling import (
    SAMPLE,
    jittered_index,
    row_extremes,
    sample_elements,
)
from mmdet_ptq.quantizers import Granularity

CPU = torch.device('cpu')

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.lists(floats, min_size=1, max_size=9), min_size=1, max_size=5)
)
def test_against_a_loop(batches):
    observer = LpObserver()
    for values in batches:
        observer.observe(torch.tensor(values))
    observer.end_image()
    e = int(observer.exponent)
    want = [0] * (2 * observer.half)
    for value in (v for values in batches for v in values):
        want[math.floor(value / 2.0**e) + observer.half] += 1
    assert observer.counts.flatten().tolist() == want
    zeros = sum(v == 0 for values in batches for v in values)
    assert int(observer.zeros) == zeros


def test_rows_have_their_own_exponents():
    observer = LpObserver()
    observer.bind(Granularity('channel', 1))
    scale = torch.tensor([1e-4, 1.0, 300.0])[:, None]
    observer.observe(torch.randn(7, 3, 50) * scale)
    observer.end_image()
    observer.observe(torch.randn(7, 3, 50) * scale * 9)
    observer.end_image()
    spread = (observer.counts[0] > 0).sum(1)
    assert (spread > 100).all()
    assert observer.exponent.unique().numel() == 3
    assert (observer.counts.sum(-1) == 700).all()


@pytest.mark.parametrize(
    'rows, bins', [(1, 1 << 14), (256, 2048), (4096, 1024)]
)
def test_memory_is_bounded(rows, bins):
    observer = LpObserver()
    observer.bind(Granularity('channel', 1))
    observer.observe(torch.randn(1, rows, 2))
    assert observer.counts.shape == (1, rows, bins)


def layouts(x):
    yield x.contiguous(memory_format=torch.channels_last)
    yield x.transpose(2, 3).contiguous().transpose(2, 3)
    yield torch.cat([x, x], 3)[..., : x.shape[3]]
    yield torch.stack([x, x], -1)[..., 1]


@pytest.mark.parametrize(
    'grain',
    [
        Granularity(),
        Granularity('channel', 1),
        Granularity('group', 1, 4),
        Granularity('channel', -1),
    ],
)
def test_strides_change_nothing(grain):
    x = torch.randn(2, 8, 160, 170)
    want, weight = sample_elements(x, grain)
    rows = grain.rows(x)
    assert want.shape[1] * weight <= rows.shape[1]
    assert weight == 1 or want.numel() <= 1 << 18
    for y in layouts(x):
        assert torch.equal(y, x)
        got, same = sample_elements(y, grain)
        assert torch.equal(got, want) and same == weight
        low, high = row_extremes(y, grain)
        assert torch.equal(low, rows.amin(1))
        assert torch.equal(high, rows.amax(1))


@pytest.mark.parametrize('count', [SAMPLE + 1, 100_000, 10**6, 2**24 + 7])
def test_sample_is_one_of_each_stratum(count):
    index, width = jittered_index(count, SAMPLE, CPU)
    assert len(index) <= SAMPLE and index[-1] < count
    assert torch.equal(index // width, torch.arange(len(index), device=CPU))


@pytest.mark.parametrize('period', [2, 3, 64, 200, 256, 800, 1024])
def test_sample_meets_no_column_more_often(period):
    index, _ = jittered_index(2**22, SAMPLE, CPU)
    share = torch.bincount(index % period, minlength=period)
    assert share.min() > 0
    expected = len(index) / period
    assert (share - expected).abs().max() < max(5 * expected**0.5, 3)


def test_samples_weigh_what_they_stand_for():
    observer = LpObserver()
    observer.observe(torch.randn(1, 3, 400, 500).relu())
    observer.observe(torch.randn(1, 3, 4, 5))
    observer.end_image()
    assert int(observer.counts.sum()) == pytest.approx(600_060, rel=1e-3)
    assert int(observer.zeros) == pytest.approx(300_000, rel=0.02)


def test_growth_by_many_octaves(monkeypatch):
    monkeypatch.setattr(module, 'MOST_BINS', 1024)
    a, b = LpObserver(), LpObserver()
    values = [
        torch.tensor([s * 10.0**k])
        for k in range(-38, 39, 4)
        for s in (-1.0, 1.0)
    ]
    for x in values:
        a.observe(x)
        a.end_image()
    for x in reversed(values):
        b.observe(x)
        b.end_image()
    assert a.half == 512
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.exponent, b.exponent)
