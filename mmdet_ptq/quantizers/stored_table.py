# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What quantizers have in common that keep their table."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .capabilities import Ranges, Searchable
from .export_ops import exporting, fields, table_lookup_op
from .kernels import straight_through, to_dtype
from .table import TableQuantizer
from .table_encoding import TableEncoding

# Every value is 0 or a normal float32.
MIN_SCALE = 2.0**-100
MAX_SCALE = torch.finfo(torch.float32).max
_TINY = torch.finfo(torch.float32).tiny


class Grid(NamedTuple):
    """Values and bounds of any number of rows.

    Attributes:
        table (Tensor): float32 ``[..., V]``, ascending.
        bounds (Tensor): float32 ``[..., V - 1]``, ascending.
    """

    table: Tensor
    bounds: Tensor


def grid_of(
    values: Tensor, bounds: Tensor | None = None, shift: float = 0.0
) -> Grid:
    """Rounds a grid to float32, each value still the code of itself.

    Args:
        values (Tensor): float64 ``[..., V]``, ascending.
        bounds (Tensor, optional): float64 ``[..., V - 1]``, between the
            values. Halfway by default.
        shift (float): Is taken from all of them.

    Returns:
        Grid: Values whose magnitude is no normal float32 become 0.
    """
    if bounds is None:
        bounds = (values[..., :-1] + values[..., 1:]) / 2
    values = torch.where(values.abs() < _TINY, 0.0, values) - shift
    table = values.to(torch.float32)
    low, high = table[..., :-1], table[..., 1:]
    above = torch.nextafter(low, torch.full_like(low, torch.inf))
    found = (bounds - shift).to(torch.float32)
    return Grid(table, found.maximum(above).minimum(high))


class StoredTableQuantizer(TableQuantizer, Searchable):
    """Values by a table that few numbers of each row give.

    The numbers and the table itself are its state: a forward only looks up,
    and codes do not depend on how a machine computes powers.

    A subclass says in ``parameter_names`` what its numbers are called: they
    are buffers, ``[K]`` or ``[L, K]`` for L pyramid levels, and come as a
    tuple of tensors in that order. In ``roles`` it says what it is for.

    Attributes:
        table (Tensor): float32 ``[K, V]``, or ``[L * K, V]``; empty before
            a range was set.
        bounds_of_rows (Tensor): float32, V - 1 of them a row.
    """

    parameter_names: tuple[str, ...] = ('scale',)
    roles: ClassVar[tuple[str, ...]] = ('act',)
    #: buffers that follow from the others and are not saved
    derived: ClassVar[tuple[str, ...]] = ()
    table: Tensor
    bounds_of_rows: Tensor

    def __init__(
        self,
        bits: int = 4,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        if role == 'weight' and role not in self.roles:
            raise ValueError(
                f"a {type(self).__name__} is for role 'act', got {role!r}: "
                'use a UniformQuantizer, an LLAQuantizer or a '
                'CodebookQuantizer for weights'
            )
        super().__init__(bits, granularity, axis, group_size, per_level, role)
        for name in (*self.parameter_names, 'table', 'bounds_of_rows'):
            kept = name not in self.derived
            self.register_buffer(name, torch.empty(0), persistent=kept)

    @abstractmethod
    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """Numbers that cover a range.

        Args:
            low (Tensor): Any shape.
            high (Tensor): Same shape.

        Returns:
            tuple[Tensor, ...]: float32 of that shape, one for each of
            ``parameter_names``; whole numbers are float32 too.
        """

    @abstractmethod
    def grid(self, *numbers: Tensor) -> Grid:
        """The grid of numbers, computed in float64.

        Args:
            *numbers (Tensor): float32 of any shape.

        Returns:
            Grid: With that shape before its last axis.
        """

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See :meth:`BaseQuantizer.set_range`."""
        self.check_range(low, high)
        self.set_numbers(*self.of_range(low, high))

    @torch.no_grad()
    def set_numbers(self, *numbers: Tensor) -> None:
        """Takes numbers, ``[K]`` or ``[L, K]`` each, and their grid."""
        device = self.table.device
        grid = self.grid(*(n.flatten() for n in numbers))
        for name, value in zip(self.parameter_names, numbers, strict=True):
            setattr(self, name, value.to(device).contiguous())
        self.table, self.bounds_of_rows = (g.to(device) for g in grid)
        self.initialized.fill_(True)

    def numbers(self) -> tuple[Tensor, ...]:
        """What :meth:`set_numbers` was given.

        Raises:
            CalibrationError: If no range was set.
        """
        if 0 in self.table.shape:
            raise self.no_range()
        return tuple(getattr(self, name) for name in self.parameter_names)

    def _rows(self, level: int) -> slice:
        """Where the rows of a level are in the table."""
        first = self.numbers()[0]
        if first.dim() == 1 or first.shape[0] == 1:
            return slice(None)
        levels, rows = first.shape
        if not 0 <= level < levels:
            raise IndexError(
                f'level {level} of a quantizer that has ranges for '
                f'{levels} levels'
            )
        return slice(level * rows, (level + 1) * rows)

    def codebook(self) -> Tensor:
        """See :meth:`TableQuantizer.codebook`: of the first level."""
        return self.table[self._rows(0)]

    def bounds(self, table: Tensor) -> Tensor:
        """See :meth:`TableQuantizer.bounds`: of the first level."""
        return self.bounds_of_rows[self._rows(0)]

    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> TableEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        rows = self._rows(level)
        return TableEncoding(
            self.bits,
            self.granularity,
            self.table[rows],
            self.bounds_of_rows[rows],
        )

    def numbers_of(self, level: int) -> tuple[Tensor, ...]:
        """:meth:`numbers` of one level, ``[K]`` each."""
        at = self._rows(level)
        return tuple(n.flatten()[at] for n in self.numbers())

    @torch.no_grad()
    def set_level(self, level: int, *numbers: Tensor) -> None:
        """:meth:`set_numbers` for one level, ``[K]`` each."""
        at, device = self._rows(level), self.table.device
        for own, value in zip(self.numbers(), numbers, strict=True):
            own.view(-1)[at] = value.to(device)
        for mine, found in zip(
            (self.table, self.bounds_of_rows),
            self.grid(*numbers),
            strict=True,
        ):
            mine[at] = found.to(device)

    def num_levels(self) -> int:
        """Number of pyramid levels with a range of their own."""
        first = getattr(self, self.parameter_names[0])
        return first.shape[0] if first.dim() == 2 else 1

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return len(self.table)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any shape, strides and float type.
            level (int): Pyramid level.

        Returns:
            Tensor: Like ``x``; NaN stays NaN. Its gradient is 1 from the
            lowest value of the table to the highest and 0 beyond.

        Raises:
            CalibrationError: If no range was set.
            ValueError: If the rows do not fit the shape of ``x``.
        """
        rows = self._rows(level)
        table, bounds = self.table[rows], self.bounds_of_rows[rows]
        grain = self.granularity
        if exporting():
            y: Tensor = table_lookup_op(x, table, bounds, *fields(grain))
            return y
        y = TableEncoding(self.bits, grain, table, bounds).quantize(x)
        if torch.is_grad_enabled() and x.requires_grad:
            ends = (grain.expand(table[:, i], x.shape) for i in (0, -1))
            y = straight_through(x.to(torch.float32).clamp(*ends), y)
        return to_dtype(y, x.dtype)

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`."""
        table, bounds = self.grid(*self._given(candidates))
        x = x[:, None].expand(*table.shape[:2], -1).contiguous()
        codes = torch.searchsorted(bounds.contiguous(), x, right=True)
        return table.gather(2, codes)

    def adopt(self, candidates: tuple[Tensor, ...], index: Tensor) -> None:
        """See :meth:`Searchable.adopt`."""
        numbers = self._given(candidates)
        flat = index.reshape(-1, 1)
        self.set_numbers(
            *(n.gather(1, flat).view(index.shape) for n in numbers)
        )

    def _given(self, candidates: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Numbers of candidates: of their ranges, or their first fields."""
        if isinstance(candidates, Ranges):
            return self.of_range(*candidates)
        return candidates[: len(self.parameter_names)]

    def parameter_bits(self, rows: int) -> int:
        """32 bits for each number that is not fixed."""
        return 32 * len(self.parameter_names) * rows
