# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges that leave out a share of the data at either end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..quantizers import BaseQuantizer, Searchable
from ..registry import OBSERVERS
from .bins import power_of_two
from .histogram import HistogramObserver
from .points import points_of
from .search import GridError


@OBSERVERS.register_module()
class PercentileObserver(HistogramObserver):
    """Quantiles ``1 - percentile`` and ``percentile`` (as ppq's).

    Args:
        percentile (float | Sequence[float] | dict): In (0.5, 1]; 1 gives
            the extremes. Of several, each row of each pyramid level takes
            the one of least squared error (RepQ-ViT, Li et al., 2023, takes
            0.999, 0.9999 and 0.99999). A dict has one for each width, such
            as ``{'4': 0.9995, '8': 1.0}``: what is not listed takes that of
            the next width above it, or of the last. Defaults to 0.9999.

    Raises:
        ValueError: If ``percentile`` is out of range, or a key is no width.
    """

    def __init__(
        self, percentile: float | Sequence[float] | dict = 0.9999
    ) -> None:
        self.by_width: dict[int, float] = {}
        if isinstance(percentile, dict):
            shares = list(percentile.values())
            self.by_width = {_width(k): v for k, v in percentile.items()}
        elif isinstance(percentile, Sequence):
            shares = list(percentile)
        else:
            shares = [percentile]
        if not shares or not all(
            isinstance(one, int | float) and 0.5 < one <= 1 for one in shares
        ):
            raise ValueError(
                f'percentile must be in (0.5, 1], got {percentile}'
            )
        self.percentiles = shares
        super().__init__()

    def _of(self, bits: int) -> list[float]:
        """The percentiles that are tried at a width."""
        if not self.by_width:
            return self.percentiles
        widths = sorted(self.by_width)
        return [
            self.by_width[next((w for w in widths if w >= bits), widths[-1])]
        ]

    def why_not(self, quantizer: BaseQuantizer) -> str:
        """See the base class: of several ranges the best is taken."""
        several = len(self._of(quantizer.bits)) > 1
        if not several or isinstance(quantizer, Searchable):
            return ''
        return (
            'a PercentileObserver of several percentiles tries ranges, and a '
            f'{type(quantizer).__name__} is not Searchable; give it one '
            'percentile'
        )

    def _ranges(self, quantizer: BaseQuantizer) -> tuple[Tensor, Tensor]:
        pairs = [self._between(share) for share in self._of(quantizer.bits)]
        if len(pairs) == 1:
            return pairs[0]
        low, high = (torch.stack(ends, 2) for ends in zip(*pairs, strict=True))
        best = torch.zeros(*low.shape[:2], 1, dtype=torch.long)
        best = best.to(low.device)
        for level in self.known_levels():
            points, share = points_of([(self, level)], quantizer.bits)
            error = GridError(quantizer, points[0], share[0], 2.0)
            errors = error(low[level].float(), high[level].float())
            best[level, :, 0] = errors.argmin(1)
        return low.gather(2, best)[..., 0], high.gather(2, best)[..., 0]

    def _between(self, percentile: float) -> tuple[Tensor, Tensor]:
        """The range of one percentile, ``[L, K]``."""
        at = self.counts.device
        least, most = self.low.to(at), self.high.to(at)
        if percentile == 1:
            return least, most
        low = self._quantile(1 - percentile)
        high = self._quantile(percentile)
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


def _width(key: object) -> int:
    if str(key).isdecimal() and 2 <= int(str(key)) <= 8:
        return int(str(key))
    raise ValueError(
        f'percentile has a share for {key!r}, which is no width: keys are '
        "'2' to '8'"
    )
