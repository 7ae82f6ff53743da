# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Values of a table for large tensors on a CPU, without a binary search.

The elements above the lowest value of a table fall into buckets by the
leading bits of their distance from it: sign, exponent and seven bits of the
mantissa. Where no bucket holds two different bounds, its number tells all
codes but two apart, and one comparison tells those. The distance is a float
subtraction, which never changes the order of two numbers, so that the result
is the one of the binary search, bit for bit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .fake_quantize import BLOCK

#: elements of a row from which buckets are faster than a binary search
WORTH = 1 << 16
_SHIFT = 16
_COUNT = 1 << 31 - _SHIFT
_INF = 0x7F800000 >> _SHIFT


class Buckets(NamedTuple):
    """What is known of each bucket of a table.

    Attributes:
        first (Tensor): float32, the lowest value.
        edge (Tensor): float32 ``[2^15]``, the bound inside, +inf if none.
        values (Tensor): float32 ``[2^16]``, for each bucket the value below
            its edge and the value from it on; NaN for NaN.
    """

    first: Tensor
    edge: Tensor
    values: Tensor


def find_buckets(table: Tensor, bounds: Tensor) -> Buckets | None:
    """Sorts the bounds of one row into buckets.

    Args:
        table (Tensor): float32 ``[V]``, ascending.
        bounds (Tensor): float32 ``[N]``, ascending, N below V.

    Returns:
        Buckets | None: None if a bucket would hold two different bounds.
    """
    first = table[0]
    edges = bounds.unique()
    at = _bucket(edges - first)
    if len(at.unique()) < len(at):
        return None
    every = torch.arange(_COUNT, dtype=torch.int32, device=table.device)
    codes = torch.searchsorted(_bucket(bounds - first), every)
    below = table[codes]
    below[_INF + 1 :] = torch.nan
    above = below.clone()
    above[at.long()] = table[torch.searchsorted(bounds, edges, right=True)]
    edge = torch.full_like(below, torch.inf)
    edge[at.long()] = edges
    return Buckets(first, edge, torch.stack([below, above], 1).flatten())


def look_up_by_buckets(buckets: Buckets, x: Tensor) -> Tensor:
    """The value of each element.

    Args:
        buckets (Buckets): Of one row.
        x (Tensor): float32 ``[M]``.

    Returns:
        Tensor: float32 ``[M]``, NaN where x is.
    """
    out = torch.empty_like(x)
    for i in range(0, len(x), BLOCK):
        part = x[i : i + BLOCK]
        at = _bucket(part - buckets.first)
        above = part >= buckets.edge.index_select(0, at)
        at.mul_(2).add_(above)
        torch.index_select(buckets.values, 0, at, out=out[i : i + BLOCK])
    return out


def _bucket(distance: Tensor) -> Tensor:
    """Numbers of buckets, int32; overwrites the distances."""
    bits = distance.clamp_(min=0).view(torch.int32)
    # a zero or a NaN may have a sign
    return bits.bitwise_right_shift_(_SHIFT).bitwise_and_(_COUNT - 1)
