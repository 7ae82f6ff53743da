# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Observers: statistics of a stream of tensors, and ranges from them."""

from .base import BaseObserver, end_batch
from .histogram import HistogramObserver
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
    'HistogramObserver',
    'LpObserver',
    'MinMaxObserver',
    'MovingAverageObserver',
    'PercentileObserver',
    'end_batch',
    'sample_tokens',
    'search_weight_range',
]
