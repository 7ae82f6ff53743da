# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A value for each code, placed where the tensor's own values lie."""

from typing import Any

import torch
from torch import Tensor

from ..registry import QUANTIZERS
from .base import ROLES
from .capabilities import FitsPoints, FitsTensor, PlacesValues
from .points import equal_samples, power_
from .stored_table import Grid, StoredTableQuantizer, grid_of

#: visits of all values, and the relative gain below which they end
VISITS, GAIN = 100, 1e-5


@QUANTIZERS.register_module()
class CodebookQuantizer(
    StoredTableQuantizer, FitsPoints, FitsTensor, PlacesValues
):
    """Values of least error, at any distance from each other.

    The quantizer of Lloyd (1982) and Max (1960): every element becomes the
    nearest value, and every value is the mean of the elements that become
    it, in turn until the error no longer falls. Of activations one value is
    0, so that padding has a code. A runtime looks values up: there are no
    integer products, as with all quantizers whose steps differ.

    Args:
        bits (int): Bit-width, 2 to 8.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1 for activations
            and 0 for weights.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own values.
        role (str): ``'act'`` or ``'weight'``.

    Attributes:
        low (Tensor): float32 ``[K]`` or ``[L, K]``, the range from which
            the values were moved to where they are.
        high (Tensor): float32, shaped like ``low``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    parameter_names = ('low', 'high')
    roles = ROLES
    # halfway between values: a file needs the values alone
    derived = ('bounds_of_rows',)
    low: Tensor
    high: Tensor

    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`StoredTableQuantizer.of_range`."""
        return low.to(torch.float32), high.to(torch.float32)

    def grid(self, *numbers: Tensor) -> Grid:
        """See :meth:`StoredTableQuantizer.grid`: equal steps."""
        low, high = (n.to(torch.float64)[..., None] for n in numbers)
        count = 1 << self.bits
        part = torch.arange(count, dtype=torch.float64, device=low.device)
        return _grid(
            self._holding_zero(low + (high - low) * part / (count - 1))
        )

    def _holding_zero(self, values: Tensor) -> Tensor:
        """Values in ascending order; of activations the one next to 0 is 0."""
        if self.role == 'act':
            nearest = values.abs().argmin(-1, keepdim=True)
            values = values.scatter(-1, nearest, 0.0)
        return values.sort(-1).values

    @torch.no_grad()
    def fit(self, x: Tensor) -> bool:
        """See :meth:`FitsTensor.fit`: of least squared error."""
        rows = self.finite_rows(x)
        if not rows.numel():
            self.set_range(*rows.new_zeros(2, len(rows)))
            return True
        shares = torch.ones_like(rows)
        # nearer to where the values end up than the outermost elements are
        edge = equal_samples(rows, shares)
        inset = edge.shape[1] >> self.bits + 1
        self.set_range(edge[:, inset], edge[:, -1 - inset])
        self.fit_points(rows, shares)
        return True

    @torch.no_grad()
    def fit_points(
        self, points: Tensor, shares: Tensor, p: float = 2.0, level: int = 0
    ) -> None:
        """See :meth:`FitsPoints.fit_points`: from equal steps on."""
        at = self._rows(level)
        points, shares = points.double(), shares.double()
        values = self.grid(*self.numbers_of(level)).table.to(points)
        best = values
        least = points.new_full((len(points), 1), torch.inf)
        for _ in range(VISITS):
            bounds = (values[:, 1:] + values[:, :-1]) / 2
            codes = torch.searchsorted(bounds.contiguous(), points, right=True)
            off = points - values.gather(1, codes)
            error = (power_(off.clone(), p) * shares).sum(1, keepdim=True)
            best = torch.where(error < least, values, best)
            gained = error < least * (1 - GAIN)
            least = least.minimum(error)
            if not bool(gained.any()):
                break
            values = self._moved(values, codes, points, shares * _pull(off, p))
        self._set_table(at, best)

    def _moved(
        self, values: Tensor, codes: Tensor, points: Tensor, pull: Tensor
    ) -> Tensor:
        """Each value at the weighted mean of its points."""
        total = torch.zeros_like(values).scatter_add_(1, codes, pull)
        mean = torch.zeros_like(values).scatter_add_(1, codes, pull * points)
        return self._holding_zero(torch.where(total > 0, mean / total, values))

    def _set_table(self, at: slice, values: Tensor) -> None:
        table, bounds = _grid(values.to(self.table.device))
        self.table[at], self.bounds_of_rows[at] = table, bounds

    @torch.no_grad()
    def place(self, values: Tensor) -> None:
        """See :meth:`PlacesValues.place`."""
        self.numbers()
        if values.shape != self.table.shape:
            raise ValueError(
                f'values to place are {tuple(self.table.shape)}, '
                f'got {tuple(values.shape)}'
            )
        if not bool(torch.isfinite(values.to(torch.float32)).all()):
            raise ValueError('values to place hold NaN or Inf')
        values = values.sort(-1).values.to(self.table.device, torch.float64)
        self._set_table(slice(None), values)
        for end, found in (
            (self.low, self.table[:, 0]),
            (self.high, self.table[:, -1]),
        ):
            end.copy_(found.view_as(end))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.table.numel():
            self.bounds_of_rows = _grid(self.table).bounds

    def parameter_bits(self, rows: int) -> int:
        """32 bits for each value."""
        return 32 * rows << self.bits


def _grid(values: Tensor) -> Grid:
    """Bounds follow from the values as they are stored, in float32."""
    return grid_of(values.to(torch.float32).to(torch.float64))


def _pull(off: Tensor, p: float) -> Tensor:
    """How much a point counts in a mean that has the least ``|x - q|^p``."""
    if p == 2:
        return torch.ones_like(off)
    return off.abs().clamp(min=1e-30) ** (p - 2)
