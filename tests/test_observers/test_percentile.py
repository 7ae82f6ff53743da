# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantiles, beside those of numpy."""

import math

import pytest
import torch

from mmdet_ptq.observers import PercentileObserver
from mmdet_ptq.quantizers import UniformQuantizer


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
