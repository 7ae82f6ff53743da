# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which of a few grids a row of a tensor takes."""

import torch
from torch import Tensor

from .granularity import Granularity


def assign_groups(
    x: Tensor, low: Tensor, high: Tensor, granularity: Granularity
) -> Tensor:
    """The nearest group of each row (eq. 5).

    Args:
        x (Tensor): Any shape, strides and float type.
        low (Tensor): ``[G]``, ends of the groups.
        high (Tensor): ``[G]``.
        granularity (Granularity): Of K rows, ``'channel'`` or ``'row'``.

    Returns:
        Tensor: int64 ``[K]``; 0 where a row is empty.
    """
    rows = granularity.num_rows(x.shape)
    if x.numel() == 0:
        return torch.zeros(rows, dtype=torch.int64, device=x.device)
    axis = granularity.channel_axis(x.shape)
    others = [i for i in range(x.dim()) if i != axis]
    if granularity.kind == 'row':
        others = [axis]
    least, most = (x.amin(others), x.amax(others)) if others else (x, x)
    ends = torch.stack([least.reshape(-1), most.reshape(-1)], 1).double()
    return nearest(ends, torch.stack([low, high], 1).double())[1]


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Least squared distance of each point, and to which centre.

    Args:
        points (Tensor): float64 ``[P, 2]``.
        centres (Tensor): float64 ``[G, 2]``.

    Returns:
        tuple[Tensor, Tensor]: float64 ``[P]`` and int64 ``[P]``, the first
        of several.
    """
    apart = (points[:, None] - centres).square_().sum(2)
    index = apart.argmin(1)
    return apart.gather(1, index[:, None])[:, 0], index


@torch.library.custom_op('mmdet_ptq::assign_groups', mutates_args=())
def assign_groups_op(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
) -> Tensor:
    """:func:`assign_groups` as one operation of a graph."""
    grain = Granularity(kind, axis, group_size, within)
    return assign_groups(x, low, high, grain)


@assign_groups_op.register_fake
def _one_for_each_row(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
) -> Tensor:
    rows = Granularity(kind, axis, group_size, within).num_rows(x.shape)
    return x.new_empty(rows, dtype=torch.int64)
