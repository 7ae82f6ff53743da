# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers that want more of a tensor than its range."""

from torch import Tensor

from ..quantizers import BaseQuantizer, FitsPoints
from .base import BaseObserver
from .histogram import HistogramObserver
from .lp import LpObserver
from .points import points_of


def set_range(
    quantizer: BaseQuantizer, observer: BaseObserver, low: Tensor, high: Tensor
) -> None:
    """Sets a range, and what a range leaves open.

    A quantizer that :class:`FitsPoints` finds that on the histogram, by the
    exponent of an :class:`LpObserver`, else by 2. Of an observer without a
    histogram, and for a pyramid level that had no data or zeros alone, it
    keeps what the range alone gives.

    Args:
        quantizer (BaseQuantizer): Of an activation.
        observer (BaseObserver): What has seen it.
        low (Tensor): ``[L, K]``.
        high (Tensor): ``[L, K]``.
    """
    quantizer.set_range(low, high)
    if not isinstance(quantizer, FitsPoints):
        return
    if not isinstance(observer, HistogramObserver):
        return
    observer.end_image()
    p = observer.p if isinstance(observer, LpObserver) else 2.0
    for level in observer.known_levels():
        points, shares = points_of([(observer, level)], quantizer.bits)
        if points.numel():
            quantizer.fit_points(points[0], shares[0], p, level)
