# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ends of a few grids that are near the extremes of many rows."""

import torch
from torch import Tensor

from ..quantizers import nearest

#: most points that are looked at in every step
POINTS = 1 << 13


def fit_groups(
    points: Tensor,
    groups: int,
    iterations: int = 300,
    period: int = 75,
    reach: float = 1.0,
) -> Tensor:
    """Algorithm 1 of IGQ-ViT: rows to the nearest grid, grids to the mean.

    It begins with the rows at evenly spaced ranks of their widths. A row
    goes to the grid of least squared distance of both ends, and a grid takes
    the mean ends of its rows. Every ``period`` steps, but not in the last
    ``period`` of them, it goes back to the best grids so far: those without
    rows, or else the one whose rows would lose least by the next nearest,
    begin anew at the row that is farthest from its grid, in the group with
    the largest sum of distances. (The paper does not say what T is; it gives
    75 for it, and 300 steps.) The best grids that there were are taken: by
    these distances they are never worse than those it began with.

    Means clip half of the rows, and the widest by much. So the ends go on
    from there to the extremes of the rows that are nearest to the mean. A row
    may then be nearer to the ends of another grid, and clipped by that.

    Args:
        points (Tensor): ``[P, 2]``, lower and upper ends of the rows; their
            order does not matter. Of more than 8192 some are left out.
        groups (int): G, the number of grids.
        iterations (int): Steps at most; it ends when nothing changes.
        period (int): T.
        reach (float): How far they go, from 0, the means as in the paper, to
            1, the extremes.

    Returns:
        Tensor: float64 ``[G, 2]``, narrow grids first.
    """
    points = _sorted(points.to('cpu', torch.float64))
    some = points[_ranks(len(points), min(len(points), POINTS))]
    centres = some[_middles(len(some), groups)]
    best, least = centres, float('inf')
    step = 0
    before = None
    while step < iterations:
        step += 1
        far, group = nearest(some, centres)
        if float(far.sum()) < least:
            best, least = centres, float(far.sum())
        if step % period == 0 and step <= iterations - period:
            centres, before = _reseeded(some, best), None
            continue
        if before is not None and torch.equal(group, before):
            # the same again until grids begin anew
            left = period - step % period
            if step + left > iterations - period:
                break
            step += left - 1
            continue
        centres, before = _means(some, centres, group), group
    return _sorted(best.lerp(_covering(points, best), reach))


def _sorted(points: Tensor) -> Tensor:
    """By width, then by upper end."""
    points = points[points[:, 1].argsort(stable=True)]
    return points[(points[:, 1] - points[:, 0]).argsort(stable=True)]


def _ranks(count: int, wanted: int) -> Tensor:
    """Evenly spaced positions, the first and the last among them."""
    steps = max(1, wanted - 1)
    return torch.arange(wanted, device='cpu') * (count - 1) // steps


def _middles(count: int, parts: int) -> Tensor:
    """The middle position of each of some equal parts."""
    return torch.arange(1, 2 * parts, 2, device='cpu') * count // (2 * parts)


def _means(points: Tensor, centres: Tensor, group: Tensor) -> Tensor:
    """Mean of each group; one without points stays where it is."""
    count = torch.bincount(group, minlength=len(centres))[:, None]
    total = torch.zeros_like(centres).index_add_(0, group, points)
    return torch.where(count > 0, total / count.clamp(min=1), centres)


def _reseeded(points: Tensor, centres: Tensor) -> Tensor:
    """Moves grids that are hardly missed to where one is missing."""
    centres = centres.clone()
    far, group = nearest(points, centres)
    lost = torch.zeros(len(centres), dtype=far.dtype, device='cpu')
    lost.index_add_(0, group, _second(points, centres, group) - far)
    count = torch.bincount(group, minlength=len(centres))
    moved = (count == 0).nonzero()[:, 0].tolist() or [int(lost.argmin())]
    far[group == moved[0]] = 0
    for one in moved:
        total = torch.zeros(len(centres), dtype=far.dtype, device='cpu')
        total.index_add_(0, group, far)
        inside = torch.where(group == total.argmax(), far, -1.0)
        worst = int(inside.argmax())
        centres[one] = points[worst]
        # the next one goes elsewhere
        far[worst] = 0
    return centres


def _second(points: Tensor, centres: Tensor, group: Tensor) -> Tensor:
    """Squared distance of each point to the nearest of the other grids."""
    apart = (points[:, None] - centres).square_().sum(2)
    return apart.scatter_(1, group[:, None], float('inf')).amin(1)


def _covering(points: Tensor, centres: Tensor) -> Tensor:
    """The extremes of each group in place of its mean."""
    group = nearest(points, centres)[1]
    index = group[:, None].expand_as(points)
    low = centres.scatter_reduce(0, index, points, 'amin', include_self=False)
    high = centres.scatter_reduce(0, index, points, 'amax', include_self=False)
    return torch.stack([low[:, 0], high[:, 1]], 1)
