# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges that leave out a share of the data at either end."""

import torch
from torch import Tensor

from ..quantizers import BaseQuantizer
from ..registry import OBSERVERS
from .bins import power_of_two
from .histogram import HistogramObserver


@OBSERVERS.register_module()
class PercentileObserver(HistogramObserver):
    """Quantiles ``1 - percentile`` and ``percentile`` (as ppq's).

    Args:
        percentile (float): In (0.5, 1]; 1 gives the extremes.

    Raises:
        ValueError: If ``percentile`` is out of range.
    """

    def __init__(self, percentile: float = 0.9999) -> None:
        if not 0.5 < percentile <= 1:
            raise ValueError(
                f'percentile must be in (0.5, 1], got {percentile}'
            )
        self.percentile = percentile
        super().__init__()

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        if self.percentile == 1:
            return self.low, self.high
        low = self._quantile(1 - self.percentile)
        high = self._quantile(self.percentile)
        least, most = self.low.to(low.device), self.high.to(low.device)
        # the sample may lack the extremes; bins may reach beyond them
        return (
            low.maximum(least).minimum(most),
            high.minimum(most).maximum(least),
        )

    def _quantile(self, q: float) -> Tensor:
        """Quantile of each row, uniform within bins, float32 ``[L, K]``."""
        above = self.counts.cumsum(-1).double()
        rank = q * above[..., -1:]
        bins = (above < rank).sum(-1, keepdim=True)
        bins = bins.clamp(max=2 * self.half - 1)
        inside = self.counts.gather(-1, bins).double()
        before = above.gather(-1, bins) - inside
        part = ((rank - before) / inside.clamp(min=1)).clamp(0, 1)
        scale = power_of_two(self.exponent).to(part.device)
        position = (bins - self.half + part).squeeze(-1)
        return (position * scale).to(torch.float32)
