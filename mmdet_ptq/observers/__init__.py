# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Observers: statistics of a stream of tensors, and ranges from them."""

from .base import BaseObserver
from .batch import Batch, end_batch, fetch, ranges_of
from .fit import set_range
from .fit_groups import fit_groups
from .histogram import HistogramObserver
from .instances import InstanceObserver
from .lp import LpObserver, search_weight_range
from .minmax import (
    AverageMinMaxObserver,
    MinMaxObserver,
    MovingAverageObserver,
)
from .percentile import PercentileObserver
from .sampling import sample_tokens

__all__ = [
    'AverageMinMaxObserver',
    'BaseObserver',
    'Batch',
    'HistogramObserver',
    'InstanceObserver',
    'LpObserver',
    'MinMaxObserver',
    'MovingAverageObserver',
    'PercentileObserver',
    'end_batch',
    'fetch',
    'fit_groups',
    'ranges_of',
    'sample_tokens',
    'search_weight_range',
    'set_range',
]
