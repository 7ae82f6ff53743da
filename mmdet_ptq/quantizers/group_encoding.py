# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a tensor whose rows have grids of different widths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .encoding import Encoding
from .granularity import Granularity


@dataclass(frozen=True, eq=False)
class GroupEncoding(Encoding):
    """An encoding for some of the rows, another for the rest, and so on.

    Packed codes are those of each part, one part after the other, each
    from a byte of its own on.

    Attributes:
        parts (tuple[Encoding, ...]): For tensors ``[M, ...]``, a row for
            each index along the first axis.
        counts (tuple[int, ...]): Rows of each part.
        order (Tensor): int64 ``[K]``, the rows of the first part, then those
            of the second, and so on.
    """

    parts: tuple[Encoding, ...]
    counts: tuple[int, ...]
    order: Tensor

    @property
    def first_code(self) -> int:
        """See :class:`Encoding`; the lowest of all parts."""
        return min(part.first_code for part in self.parts)

    @property
    def last_code(self) -> int:
        """See :class:`Encoding`; the highest of all parts."""
        return max(part.last_code for part in self.parts)

    def encode(self, x: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        pieces = split(x, self.granularity, self.order, self.counts)
        codes = [
            part.encode(piece)
            for part, piece in zip(self.parts, pieces, strict=True)
        ]
        return join(codes, self.granularity, self.order, x.shape)

    def decode(self, codes: Tensor) -> Tensor:
        """See :class:`Encoding`."""
        pieces = split(codes, self.granularity, self.order, self.counts)
        values = [
            part.decode(piece)
            for part, piece in zip(self.parts, pieces, strict=True)
        ]
        return join(values, self.granularity, self.order, codes.shape)

    def take(self, rows: Tensor) -> 'GroupEncoding':
        """See :class:`Encoding`."""
        # where the rows are among those of all parts
        at = self.order.argsort()[rows]
        order = at.argsort(stable=True)
        at = at[order]
        ends = torch.tensor(self.counts, device=at.device).cumsum(0)
        cuts = [0, *torch.searchsorted(at, ends).tolist()]
        parts, counts, start = [], [], 0
        for part, count, a, b in zip(
            self.parts, self.counts, cuts, cuts[1:], strict=False
        ):
            parts.append(part.take(at[a:b] - start))
            counts.append(b - a)
            start += count
        return replace(
            self,
            granularity=Granularity('channel', 0),
            parts=tuple(parts),
            counts=tuple(counts),
            order=order,
        )

    def pack(self, codes: Tensor) -> Tensor:
        """See :class:`Encoding`; each row takes the bits of its part."""
        pieces = split(codes, self.granularity, self.order, self.counts)
        return torch.cat(
            [
                part.pack(piece)
                for part, piece in zip(self.parts, pieces, strict=True)
            ]
        )

    def unpack(self, packed: Tensor, shape: Sequence[int]) -> Tensor:
        """See :class:`Encoding`."""
        each = math.prod(shape) // max(1, sum(self.counts))
        sizes = [
            -(-count * each * part.bits // 8)
            for part, count in zip(self.parts, self.counts, strict=True)
        ]
        if packed.numel() != sum(sizes):
            raise ValueError(
                f'{packed.numel()} bytes are not the {sum(sizes)} of codes '
                f'of shape {tuple(shape)} in parts of '
                f'{[part.bits for part in self.parts]} bits'
            )
        codes = [
            part.unpack(piece, (count, each))
            for part, piece, count in zip(
                self.parts, packed.split(sizes), self.counts, strict=True
            )
        ]
        return join(codes, self.granularity, self.order.cpu(), shape)


def split(
    x: Tensor,
    granularity: Granularity,
    order: Tensor,
    counts: Sequence[int],
) -> tuple[Tensor, ...]:
    """Rows of a tensor, part by part.

    Args:
        x (Tensor): Any shape.
        granularity (Granularity): Gives its K rows.
        order (Tensor): int64 ``[K]``, rows in the order of their parts.
        counts (Sequence[int]): Rows of each part.

    Returns:
        tuple[Tensor, ...]: ``[count, M]`` for each part.

    Raises:
        ValueError: If the rows are not K.
    """
    rows = granularity.rows(x)
    if len(rows) != len(order):
        raise ValueError(
            f'groups of {len(order)} rows do not fit a tensor of shape '
            f'{tuple(x.shape)}, which has {len(rows)}'
        )
    pieces: tuple[Tensor, ...] = rows.index_select(0, order).split(
        list(counts)
    )
    return pieces


def join(
    pieces: Sequence[Tensor],
    granularity: Granularity,
    order: Tensor,
    shape: Sequence[int],
) -> Tensor:
    """Inverse of :func:`split` for a tensor of the given shape."""
    rows = torch.cat(list(pieces)).index_select(0, order.argsort())
    return granularity.unrows(rows, shape)
