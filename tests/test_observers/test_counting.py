# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Samples that enter many histograms at once."""

import copy

import torch
from crossings import crossings

from mmdet_ptq.observers import LpObserver
from mmdet_ptq.observers.counting import Sample, count
from mmdet_ptq.quantizers import Granularity


def test_many_samples_at_once_are_counted_as_one_by_one():
    torch.manual_seed(0)
    apart = []
    for grain in (Granularity(), Granularity('channel', 1), Granularity()):
        observer = LpObserver()
        observer.bind(grain, 2)
        for level in (0, 1):
            wide = torch.tensor([-9.0, 9.0]).expand(3, 4, 2)
            observer.observe(wide * 10.0 ** (level + len(apart)), level)
        observer.end_image()
        apart.append(observer)
    together = copy.deepcopy(apart)
    # the same level twice; another has nothing
    where = [(0, 0, 1), (1, 1, 7), (0, 0, 3), (2, 1, 2), (1, 0, 1)]
    values = [torch.randn(4, 50).mul(5).clamp(0, 8) for _ in where]
    values = [
        x[: apart[i].rows] for (i, _, _), x in zip(where, values, strict=True)
    ]
    for (i, level, weight), x in zip(where, values, strict=True):
        count([Sample(apart[i], level, x, weight)])
    with crossings() as found:
        count(
            [
                Sample(together[i], level, x, weight)
                for (i, level, weight), x in zip(where, values, strict=True)
            ]
        )
    # the observers were made outside, so the helper takes all for its device
    assert all('two devices' in name for name in found)
    for a, b in zip(apart, together, strict=True):
        assert torch.equal(a.counts, b.counts)
        assert torch.equal(a.zeros, b.zeros) and a.zeros.any()
