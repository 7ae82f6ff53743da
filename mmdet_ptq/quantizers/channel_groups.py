# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Mixed precision: a width for each group of channels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole
from ..errors import CalibrationError
from ..registry import QUANTIZERS, build_from
from .base import BaseQuantizer
from .capabilities import Searchable
from .group_encoding import GroupEncoding, join, split

#: what a part gets from the groups, and a config may not set
_GIVEN = ('axis', 'bits', 'granularity', 'group_size', 'per_level', 'role')


@QUANTIZERS.register_module()
class ChannelGroups(BaseQuantizer, Searchable):
    """A quantizer for each width, and a width for each group of channels.

    Groups are consecutive channels. Of a weight each channel has a range of
    its own and the last group may be smaller; of an activation each group
    has one range, and groups are equal. Codes, packing, storage and
    operations follow from the quantizers of the widths.

    Args:
        bits (int): The greatest of ``widths``, 2 to 8; a rule gives both.
        widths (list[int], optional): Bits of each group, in the order of the
            channels. Defaults to one group of ``bits``.
        channels (int): Channels of a group. Defaults to 128.
        of (dict, optional): Quantizer of each width, without its bits and
            granularity. Defaults to ``dict(type='UniformQuantizer')``.
        axis (int, optional): Channel axis. Defaults to 1 for activations
            and 0 for weights.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'`` or ``'weight'``.

    Attributes:
        order (Tensor): int64 ``[K]``, rows by rising width; empty before
            :meth:`set_range`.
        parts (nn.ModuleList): A quantizer for each width, by rising width.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    order: Tensor

    def __init__(
        self,
        bits: int = 8,
        widths: Sequence[int] | None = None,
        channels: int = 128,
        of: Mapping[str, Any] | None = None,
        axis: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        grouped = role != 'weight'
        super().__init__(
            bits,
            'group' if grouped else 'channel',
            axis,
            whole('channels', channels, 1) if grouped else None,
            per_level,
            role,
        )
        self.channels = whole('channels', channels, 1)
        self.widths = [bits] if widths is None else list(widths)
        if not self.widths or max(self.widths) != bits:
            raise ValueError(
                f'bits must be the greatest of widths {self.widths}, '
                f'got {bits}'
            )
        self.of = dict(type='UniformQuantizer') if of is None else dict(of)
        for name in sorted(set(_GIVEN) & set(self.of)):
            raise ValueError(
                f'{name} cannot be given in of={self.of}: it follows from '
                'the groups'
            )
        self.parts = nn.ModuleList(
            self._part(width) for width in sorted(set(self.widths))
        )
        self.symmetric = self.each()[0].symmetric
        self.register_buffer('order', torch.empty(0, dtype=torch.int64))

    def _part(self, width: int) -> BaseQuantizer:
        part: BaseQuantizer = build_from(
            QUANTIZERS,
            {**self.of, 'bits': width},
            'ChannelGroups.of',
            granularity='channel',
            axis=0,
            role=self.role,
            **(dict(per_level=True) if self.per_level else {}),
        )
        if width not in part.allowed_bits or not isinstance(part, Searchable):
            raise ValueError(
                f'a {type(part).__name__} of {width} bits cannot be a part '
                'of channel groups: it has to have that width and to be '
                'Searchable'
            )
        return part

    def each(self) -> list[Any]:
        """The parts, as quantizers that are :class:`Searchable`."""
        return list(self.parts)

    def row_widths(self, rows: int) -> list[int]:
        """Bits of each row.

        Args:
            rows (int): How many a tensor has.

        Raises:
            ValueError: If there are not as many groups as widths.
        """
        size = self.channels if self.role == 'weight' else 1
        groups = -(-rows // size)
        if groups != len(self.widths):
            raise ValueError(
                f'{len(self.widths)} widths do not fit a tensor of {groups} '
                f'groups of {self.channels} channels; give {groups} widths, '
                'or other channels'
            )
        return [self.widths[row // size] for row in range(rows)]

    def check_shape(self, shape: Sequence[int]) -> None:
        """See :meth:`BaseQuantizer.check_shape`."""
        self.row_widths(self.granularity.num_rows(shape))

    def _counts(self, rows: int) -> list[int]:
        """Rows of each part."""
        widths = self.row_widths(rows)
        return [widths.count(width) for width in sorted(set(self.widths))]

    def _known(self) -> Tensor:
        if not len(self.order):
            raise self.no_range()
        return self.order

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See :meth:`BaseQuantizer.set_range`."""
        self.check_range(low, high)
        rows = low.shape[-1]
        widths, counts = self.row_widths(rows), self._counts(rows)
        # sorted keeps the order of what is equal
        order = torch.tensor(sorted(range(rows), key=widths.__getitem__))
        ends = (
            end.index_select(-1, order.to(end.device)).split(counts, -1)
            for end in (low, high)
        )
        for part, *found in zip(self.each(), *ends, strict=True):
            part.set_range(*found)
        self.order = order.to(self.order.device)
        self.initialized.fill_(True)

    @torch.no_grad()
    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> GroupEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        order = self._known()
        return GroupEncoding(
            self.bits,
            self.granularity,
            tuple(part.encoding(level=level) for part in self.each()),
            tuple(self._counts(len(order))),
            order.clone(),
        )

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes each row by the quantizer of its width.

        In a graph each width is one operation.
        """
        order = self._known()
        pieces = split(x, self.granularity, order, self._counts(len(order)))
        found = [
            part(piece, level)
            for part, piece in zip(self.each(), pieces, strict=True)
        ]
        return join(found, self.granularity, order, x.shape)

    def num_levels(self) -> int:
        """Number of pyramid levels with a range of their own."""
        levels: int = self.each()[0].num_levels()
        return levels

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return sum(part.num_rows() for part in self.each())

    def mean_bits(self, shape: Sequence[int] | None = None) -> float:
        """See :meth:`BaseQuantizer.mean_bits`."""
        widths = self.widths
        if self.role == 'weight':
            rows = self.granularity.num_rows(shape) if shape else 0
            widths = self.row_widths(rows or len(self._known()))
        return sum(widths) / len(widths)

    def storage_bits(self, shape: Sequence[int]) -> int:
        """See :meth:`BaseQuantizer.storage_bits`."""
        rows = self.granularity.num_rows(shape)
        each = torch.Size(shape).numel() // max(1, rows)
        codes = each * sum(self.row_widths(rows))
        return codes + self.parameter_bits(rows * self.num_levels())

    def parameter_bits(self, rows: int) -> int:
        """Those of the parts."""
        levels = self.num_levels()
        counts = self._counts(rows // levels)
        return sum(
            part.parameter_bits(count * levels)
            for part, count in zip(self.each(), counts, strict=True)
        )

    def of_rows(self, rows: slice | Tensor) -> 'WidthsOfRows':
        """See :meth:`Searchable.of_rows`."""
        size = self.channels if self.role == 'weight' else 1
        groups = len(self.widths)
        return WidthsOfRows(
            self, [self.widths[r // size % groups] for r in _indices(rows)]
        )

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`, of all rows."""
        rows = len(candidates[0])
        return WidthsOfRows(self, self.row_widths(rows)).trial(x, candidates)

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f'bits={self.bits}, widths={self.widths}, channels='
            f'{self.channels}, of={self.of}'
            + (', per_level=True' if self.per_level else '')
        )


class WidthsOfRows(Searchable):
    """Tries candidates for some rows of channel groups.

    Args:
        groups (ChannelGroups): Has a quantizer for each width.
        widths (list[int]): Bits of each of K rows.
    """

    def __init__(self, groups: ChannelGroups, widths: list[int]) -> None:
        self.groups, self.widths = groups, widths

    def of_rows(self, rows: slice | Tensor) -> 'WidthsOfRows':
        """See :meth:`Searchable.of_rows`."""
        widths = [self.widths[r] for r in _indices(rows)]
        return WidthsOfRows(self.groups, widths)

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Not for some rows alone.

        Raises:
            CalibrationError: Always.
        """
        raise CalibrationError(
            'ranges of channel groups are set for all rows at once'
        )

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`."""
        first = candidates[0]
        out = x.new_empty(*first.shape, x.shape[-1])
        for part in self.groups.each():
            at = torch.tensor(
                [i for i, w in enumerate(self.widths) if w == part.bits],
                dtype=torch.int64,
                device=x.device,
            )
            some = type(candidates)(*(c[at] for c in candidates))
            out[at] = part.trial(x if len(x) == 1 else x[at], some)
        return out


def _indices(rows: slice | Tensor) -> list[int]:
    if isinstance(rows, slice):
        return list(range(rows.start, rows.stop))
    found: list[int] = rows.tolist()
    return found
