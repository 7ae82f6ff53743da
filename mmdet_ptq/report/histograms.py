# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where the values of a tensor lie on its grid."""

from typing import Any

import torch
from torch import Tensor

from ..quantizers import BaseQuantizer, Encoding

#: bins from -REACH to REACH, where -1 and 1 are the ends of the grid
BINS, REACH = 60, 1.5
#: rows and elements of a row that are looked at
ROWS, ELEMENTS = 256, 4096
#: grids of more values are not listed
LISTED = 32


class GridHistogram:
    """Counts values by where they are between the ends of their grid.

    Each row has a grid of its own, so values are moved and scaled: the
    lowest value of the grid is at -1, the highest at 1. What is clipped is
    outside. Stays on the device of the data until it is asked.
    """

    def __init__(self) -> None:
        self._counts: Tensor | None = None
        self._clipped: Tensor | None = None
        self._grid: Tensor | None = None
        self._ends: tuple[Tensor, Tensor] | None = None
        self._codes = self._rows = 0

    @torch.no_grad()
    def add(self, x: Tensor, quantizer: BaseQuantizer, level: int = 0) -> None:
        """Takes part of a tensor in.

        Args:
            x (Tensor): As it arrives at the quantizer, any shape.
            quantizer (BaseQuantizer): With a range.
            level (int): Pyramid level.
        """
        if x.numel() == 0:
            return
        x = x.detach().float()
        encoding = quantizer.encoding(x, level)
        rows = encoding.granularity.rows(x)
        every = len(rows)
        pick = _spread(every, ROWS, x.device)
        columns = _spread(
            rows.shape[1], max(1, ROWS * ELEMENTS // len(pick)), x.device
        )
        values = rows[pick][:, columns]
        grid = grid_of(encoding, pick)
        low, high = grid.amin(1, True), grid.amax(1, True)
        half = (high - low) / 2
        # a row whose grid is one value says nothing
        wide = half > 0
        half = torch.where(wide, half, torch.ones_like(half))
        placed = (values - (low + high) / 2) / half
        counts = torch.histc(
            placed.clamp(-REACH + 1e-6, REACH - 1e-6), BINS, -REACH, REACH
        )
        clipped = (placed.abs() > 1 + 1e-5).sum()
        if self._counts is None:
            self._counts, self._clipped = counts, clipped
            self._codes, self._rows = grid.shape[1], every
            if grid.shape[1] <= LISTED:
                middle = ((grid - (low + high) / 2) / half).sort(1).values
                self._grid = middle.median(0).values
            if every == 1 and quantizer.num_levels() == 1:
                self._ends = low[0, 0], high[0, 0]
        else:
            self._counts += counts
            self._clipped += clipped

    def to_dict(self) -> dict[str, Any] | None:
        """All of it as plain types, None if there was no data.

        Returns:
            dict, optional: ``counts`` of :data:`BINS` bins from -1.5 to 1.5,
            ``clipped`` (share outside the grid), ``codes``, ``rows``,
            ``grid`` (where the values of the grid are, if they are few) and
            ``ends`` (the ends of the grid itself, if there is one grid).
        """
        if self._counts is None:
            return None
        counts = self._counts.long().tolist()
        total = max(sum(counts), 1)
        grid, ends = self._grid, self._ends
        return dict(
            counts=counts,
            clipped=round(int(self._clipped) / total, 6),
            codes=self._codes,
            rows=self._rows,
            grid=None if grid is None else _rounded(grid),
            ends=None if ends is None else [float(e) for e in ends],
        )


def grid_of(encoding: Encoding, rows: Tensor) -> Tensor:
    """Every value of the grid of some rows.

    Args:
        encoding (Encoding): The grid.
        rows (Tensor): int64 ``[M]``.

    Returns:
        Tensor: float32 ``[M, V]``, in the order of codes.
    """
    codes = torch.arange(
        encoding.first_code,
        encoding.last_code + 1,
        dtype=torch.int32,
        device=rows.device,
    )
    return encoding.take(rows).decode(codes.expand(len(rows), -1))


def _spread(total: int, most: int, device: torch.device) -> Tensor:
    """Up to ``most`` indices of ``total``, evenly spread."""
    if total <= most:
        return torch.arange(total, device=device)
    step = torch.arange(most, device=device, dtype=torch.float64)
    return (step * (total / most)).long()


def _rounded(values: Tensor) -> list[float]:
    return [round(v, 4) for v in values.tolist()]
