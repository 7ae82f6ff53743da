# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantiles, beside those of numpy."""

import math

import pytest
import torch
from seeded import seeded

from mmdet_ptq.observers import PercentileObserver
from mmdet_ptq.quantizers import BaseQuantizer, UniformQuantizer


@pytest.mark.parametrize('percentile', [0.9, 0.99, 0.9999, 1.0])
def test_percentile_against_numpy(percentile):
    torch.manual_seed(0)
    batch = [torch.randn(30_000) * 2 + 1 for _ in range(2)]
    observer = PercentileObserver(percentile)
    for x in batch:
        observer.observe(x)
    low, high = observer.ranges(UniformQuantizer())
    x = torch.cat(batch)
    width = 2.0 ** int(observer.exponent)
    # within a bin of the neighbouring order statistics
    order = x.sort().values
    for got, q in ((low, 1 - percentile), (high, percentile)):
        at = q * (len(x) - 1)
        below = order[max(0, math.floor(at) - 1)]
        above = order[min(len(x) - 1, math.ceil(at) + 1)]
        assert below - width <= got.item() <= above + width


def test_percentile_is_within_the_data():
    observer = PercentileObserver(0.9)
    observer.observe(torch.tensor([2.0, 2.0, 2.0, 3.0]))
    low, high = observer.ranges(UniformQuantizer())
    assert 2 <= low.item() <= high.item() <= 3


@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_of_several_percentiles_the_best(granularity):
    """As computed with each of them alone, on the data themselves."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 3)
    # an outlier that 4 bits had better cut off; none; a few that count
    x[0, 0], x[:40, 1] = 300, torch.linspace(-2, 2, 40)
    x[:2000, 2] *= 20
    shares = [0.999, 0.9999, 1.0]
    grid = UniformQuantizer(4, granularity=granularity, axis=1)
    bound = grid.granularity
    errors, ranges = [], []
    for percentile in (shares, *shares):
        observer = PercentileObserver(percentile)
        observer.bind(bound)
        observer.observe(x)
        low, high = observer.ranges(grid)
        grid.set_range(low[0], high[0])
        errors.append(bound.rows((grid(x) - x).square()).mean(1))
        ranges.append((low, high))
    together, *alone = errors
    torch.testing.assert_close(together, torch.stack(alone).amin(0))
    best = torch.stack(alone).argmin(0)
    if granularity == 'channel':
        assert len(best.unique()) > 1
    for row, i in enumerate(best.tolist()):
        assert ranges[0][0][0, row] == ranges[1 + i][0][0, row]
        assert ranges[0][1][0, row] == ranges[1 + i][1][0, row]


@pytest.mark.parametrize(
    ('bits', 'share'),
    [(2, 0.95), (4, 0.95), (5, 0.99), (6, 0.99), (7, 1.0), (8, 1.0)],
)
def test_a_percentile_for_each_width(bits, share):
    q = UniformQuantizer(bits)
    found = []
    for given in ({'4': 0.95, '6': 0.99, '8': 1.0}, share):
        observer = PercentileObserver(given)
        observer.bind(q.granularity)
        observer.observe(torch.randn(4096, generator=seeded(0)))
        found.append(observer.ranges(q))
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))
    # what is above the widths takes the last
    assert PercentileObserver({'4': 0.95})._of(bits) == [0.95]


@pytest.mark.parametrize('key', ['w4', '1', '9', 4.0])
def test_keys_that_are_no_widths(key):
    with pytest.raises(ValueError, match='no width'):
        PercentileObserver({key: 0.99})


class Fixed(BaseQuantizer):
    """Whose range cannot be tried."""

    set_range = encoding = num_rows = parameter_bits = None


def test_several_percentiles_need_a_search():
    quantizer = Fixed()
    assert PercentileObserver(0.999).why_not(quantizer) == ''
    said = PercentileObserver([0.999, 1]).why_not(quantizer)
    assert 'Fixed is not Searchable' in said
    assert PercentileObserver([0.999, 1]).why_not(UniformQuantizer()) == ''


@pytest.mark.parametrize(
    'percentile', [0.5, 1.1, [], [0.9, 0.5], {}, {'4': 0.5}, '1', {'4': '1'}]
)
def test_percentiles_out_of_range(percentile):
    with pytest.raises(ValueError, match='percentile must be in'):
        PercentileObserver(percentile)
