# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a tensor whose values are any: a table and its bounds."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .buckets import WORTH, find_buckets, look_up_by_buckets
from .encoding import Encoding
from .granularity import Granularity
from .packing import check_codes


@dataclass(frozen=True, eq=False)
class TableEncoding(Encoding):
    """Any values: a table for each row, and where each code begins.

    The code of x is the number of its row's bounds that are not above x.

    Attributes:
        table (Tensor): float32 ``[K, V]``, the value of each code. Values
            past the last bound are no code of any x.
        bounds (Tensor): float32 ``[K, N]``, ascending, N below V: N + 1
            codes are used.
    """

    table: Tensor
    bounds: Tensor

    def __post_init__(self) -> None:
        (rows, values), found = self.table.shape, self.bounds.shape
        if found[0] != rows or not found[1] < values <= 2**self.bits:
            raise ValueError(
                f'a table {tuple(self.table.shape)} of {self.bits} bits '
                f'does not fit bounds {tuple(found)}'
            )

    @property
    def first_code(self) -> int:
        """See :class:`Encoding`."""
        return 0

    @property
    def last_code(self) -> int:
        """See :class:`Encoding`."""
        return self.table.shape[1] - 1

    def take(self, rows: Tensor) -> 'TableEncoding':
        """See :class:`Encoding`."""
        rows = rows if len(self.table) > 1 else torch.zeros_like(rows)
        return replace(
            self,
            granularity=Granularity('channel', 0),
            table=self.table[rows],
            bounds=self.bounds[rows],
        )

    def encode(self, x: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        return count(self.bounds, x, self.granularity)

    def decode(self, codes: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        check_codes(codes)
        return look_up(self.table, codes, self.granularity)

    def quantize(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``, faster for large tensors on a CPU.

        Args:
            x (Tensor): Any shape, strides and float type.

        Returns:
            Tensor: float32 of its shape; NaN stays NaN.

        Raises:
            ValueError: If the rows do not fit the shape of ``x``.
        """
        x = x.detach().to(torch.float32)
        if x.is_cpu and x.numel() >= WORTH * len(self.table):
            y = self._by_buckets(x)
            if y is not None:
                return y
        return torch.where(x.isnan(), x, self.decode(self.encode(x)))

    def _by_buckets(self, x: Tensor) -> Tensor | None:
        rows = _rows(x, len(self.table), self.granularity)
        found = []
        for table, bounds in zip(self.table, self.bounds, strict=True):
            buckets = find_buckets(table, bounds)
            if buckets is None:
                return None
            found.append(buckets)
        out = [
            look_up_by_buckets(one, row)
            for one, row in zip(found, rows, strict=True)
        ]
        y = out[0] if len(out) == 1 else torch.stack(out)
        return self.granularity.unrows(y, x.shape)


def count(bounds: Tensor, x: Tensor, granularity: Granularity) -> Tensor:
    """How many bounds of its row are not above each element.

    Args:
        bounds (Tensor): float32 ``[K, N]``, ascending.
        x (Tensor): Any shape, strides and float type.
        granularity (Granularity): Gives the K rows of ``x``; one row of
            bounds serves all.

    Returns:
        Tensor: int32 of x's shape.

    Raises:
        ValueError: If the rows do not fit the shape of ``x``.
    """
    rows = _rows(x.detach().to(torch.float32), len(bounds), granularity)
    found = torch.searchsorted(
        bounds, rows.contiguous(), right=True, out_int32=True
    )
    return granularity.unrows(found, x.shape)


def look_up(table: Tensor, codes: Tensor, granularity: Granularity) -> Tensor:
    """Values of codes.

    Args:
        table (Tensor): float32 ``[K, V]``.
        codes (Tensor): Integers, any shape.
        granularity (Granularity): Gives the K rows of ``codes``; one row of
            the table serves all.

    Returns:
        Tensor: float32 of codes' shape, differentiable in ``table``.

    Raises:
        ValueError: If the rows do not fit the shape of ``codes``.
    """
    rows = _rows(codes.to(torch.int64), len(table), granularity)
    return granularity.unrows(table.gather(1, rows), codes.shape)


def _rows(x: Tensor, known: int, granularity: Granularity) -> Tensor:
    rows = granularity.rows(x)
    if known == 1:
        return rows.reshape(1, -1)
    if len(rows) != known:
        raise ValueError(
            f'parameters of {known} rows do not fit a tensor of '
            f'shape {tuple(x.shape)}: it needs {len(rows)}'
        )
    return rows
