# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which of a few grids a row of a tensor takes."""

import torch
from torch import Tensor

from .granularity import Granularity


def assign_groups(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    granularity: Granularity,
    room: float | None,
) -> Tensor:
    """The group of each row that costs least.

    Args:
        x (Tensor): Any shape, strides and float type.
        low (Tensor): ``[G]``, ends of the groups.
        high (Tensor): ``[G]``.
        granularity (Granularity): Of K rows, ``'channel'`` or ``'row'``.
        room (float, optional): See :func:`grid_costs`.

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
    grids = torch.stack([low, high], 1).double()
    return grid_costs(ends, grids, room).argmin(1)


def grid_costs(points: Tensor, grids: Tensor, room: float | None) -> Tensor:
    """What rows would lose by each of some grids.

    Args:
        points (Tensor): float64 ``[P, 2]``, both extremes of the rows.
        grids (Tensor): float64 ``[G, 2]``, both ends of the grids.
        room (float, optional): What a grid costs by its squared width, if
            the square of what it clips at either end costs 1; grids hold 0
            even if both ends are on one side. None: the squared distance of
            both ends (IGQ-ViT, eq. 4).

    Returns:
        Tensor: float64 ``[P, G]``.
    """
    if room is None:
        return (points[:, None] - grids).square_().sum(2)
    low, high = grids[:, 0].clamp(max=0), grids[:, 1].clamp(min=0)
    below = (low - points[:, :1]).clamp_(min=0).square_()
    above = (points[:, 1:] - high).clamp_(min=0).square_()
    return below.add_(above).add_(room * (high - low).square())


@torch.library.custom_op('mmdet_ptq::assign_groups', mutates_args=())
def assign_groups_op(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
    room: float | None,
) -> Tensor:
    """:func:`assign_groups` as one operation of a graph."""
    grain = Granularity(kind, axis, group_size, within)
    return assign_groups(x, low, high, grain, room)


@assign_groups_op.register_fake
def _one_for_each_row(
    x: Tensor,
    low: Tensor,
    high: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
    room: float | None,
) -> Tensor:
    rows = Granularity(kind, axis, group_size, within).num_rows(x.shape)
    return x.new_empty(rows, dtype=torch.int64)
