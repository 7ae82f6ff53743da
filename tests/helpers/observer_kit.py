# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every observer, and tensors for it."""

import pytest
import torch

from mmdet_ptq.observers import (
    AverageMinMaxObserver,
    LpObserver,
    MinMaxObserver,
    MovingAverageObserver,
    PercentileObserver,
)
from mmdet_ptq.quantizers import Granularity, UniformQuantizer

ALL = dict(
    minmax=MinMaxObserver,
    moving=MovingAverageObserver,
    average=AverageMinMaxObserver,
    percentile=lambda: PercentileObserver(0.99),
    lp=lambda: LpObserver(steps=20),
)


GRAINS = [('tensor', None), ('channel', None), ('group', 2)]


grains = pytest.mark.parametrize('kind, size', GRAINS)


def new(name, kind='tensor', size=None, levels=1):
    observer = ALL[name]()
    grain = Granularity(kind, 1, size)
    observer.bind(grain, levels, torch.get_default_device())
    quantizer = UniformQuantizer(
        4, False, kind, group_size=size, per_level=True
    )
    return observer, quantizer


def feed(observer, batch, level=0):
    for x in batch:
        observer.observe(x, level)
        observer.end_image()
    return observer
