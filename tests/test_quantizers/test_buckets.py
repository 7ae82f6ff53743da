# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Buckets give what the binary search gives."""

import pytest
import torch

from mmdet_ptq.quantizers import Granularity, TableEncoding
from mmdet_ptq.quantizers.buckets import (
    WORTH,
    find_buckets,
    look_up_by_buckets,
)


def searched(table, bounds, x):
    """The definition: how many bounds are not above x."""
    codes = (x[:, None] >= bounds).sum(1)
    return torch.where(x.isnan(), x, table[codes])


def tables():
    powers = torch.cat([torch.zeros(1), 2.0 ** torch.arange(-14.0, 1.0)])
    yield 'powers', powers
    yield 'shifted', powers - 0.17
    yield 'close', 0.83 ** torch.arange(40.0).flip(0)
    yield 'uniform', torch.arange(16.0) / 15
    yield 'many equal', torch.tensor([-1.0, -1.0, -1.0, 0.5, 2.0, 2.0])
    yield 'huge', torch.tensor([-3e38, 0.0, 3e38])


EDGES = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, torch.inf, -torch.inf]


@pytest.mark.parametrize('name, table', tables(), ids=dict(tables()))
def test_same_as_searched(name, table):
    bounds = (table[:-1] / 2 + table[1:] / 2).clamp(min=table[0])
    step = torch.tensor(torch.inf)
    near = [bounds, bounds.nextafter(step), bounds.nextafter(-step), table]
    x = torch.cat(
        [
            torch.randn(5000) * table.abs().max(),
            torch.randn(5000).abs() * 2.0 ** -torch.randint(0, 60, (5000,)),
            torch.tensor([*EDGES, torch.nan, -torch.nan]),
            *near,
        ]
    )
    buckets = find_buckets(table, bounds)
    got, want = look_up_by_buckets(buckets, x), searched(table, bounds, x)
    assert torch.equal(got.isnan(), x.isnan())
    known = ~x.isnan()
    assert torch.equal(got[known], want[known])


def test_two_bounds_in_a_bucket_are_left_to_the_search():
    table = torch.tensor([0.0, 1.0, 1.001, 1.002])
    assert find_buckets(table, table[1:]) is None
    x = torch.linspace(-1, 2, WORTH)
    e = TableEncoding(2, Granularity(), table[None], table[None, 1:])
    assert torch.equal(e.quantize(x), searched(table, table[1:], x))


@pytest.mark.parametrize('kind', ['tensor', 'channel', 'group'])
def test_rows_of_a_large_tensor(kind):
    grain = Granularity(kind, 1, 2 if kind == 'group' else None)
    rows = dict(tensor=1, channel=4, group=2)[kind]
    scale = 1.0 + torch.arange(rows)[:, None]
    table = scale * 2.0 ** torch.arange(-7.0, 1.0)
    bounds = table[:, 1:] * 0.7
    x = torch.rand(3, 4, WORTH) * 3
    e = TableEncoding(3, grain, table, bounds)
    assert torch.equal(e.quantize(x), e.decode(e.encode(x)))
    y = e.quantize(x.transpose(0, 2).contiguous().transpose(0, 2))
    assert torch.equal(y, e.quantize(x))
    with pytest.raises(ValueError, match='do not fit'):
        TableEncoding(
            3,
            Granularity('channel'),
            table[:1].repeat(3, 1),
            bounds[:1].repeat(3, 1),
        ).quantize(x)
