# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ends of a few grids that cost many rows least."""

from functools import partial

import torch
from torch import Tensor

from ..quantizers import grid_costs

#: most points that are looked at in every step
POINTS = 1 << 13
#: Newton steps to the ends of least cost; they are reached after a few
NEWTON = 8


def fit_groups(
    points: Tensor,
    groups: int,
    iterations: int = 300,
    period: int = 75,
    room: float | None = None,
) -> Tensor:
    """Algorithm 1 of IGQ-ViT: rows to the best grid, grids to their rows.

    It begins with the rows at evenly spaced ranks of their widths. A row
    goes to the grid of least cost, see :func:`grid_costs`, and a grid takes
    the ends of least cost for its rows; by squared distances, as in the
    paper, these are the mean ends. Every ``period`` steps, but not in the last
    ``period`` of them, it goes back to the best grids so far: those without
    rows, or else the one whose rows would lose least by the next best, begin
    anew at the row that costs most, in the group that costs most. (The paper
    does not say what T is; it gives 75 for it, and 300 steps.) The best grids
    that there were are taken, so they never cost more than those it began
    with.

    Args:
        points (Tensor): ``[P, 2]``, lower and upper ends of the rows; their
            order does not matter. Of more than 8192 some are left out.
        groups (int): G, the number of grids.
        iterations (int): Steps at most; it ends when nothing changes.
        period (int): T.
        room (float, optional): What decides, see :func:`grid_costs`.

    Returns:
        Tensor: float64 ``[G, 2]``, narrow grids first.
    """
    points = _sorted(points.to('cpu', torch.float64))
    some = points[_ranks(len(points), min(len(points), POINTS))]
    centres = some[_middles(len(some), groups)]
    best, least = centres, float('inf')
    ends = _means if room is None else partial(_cheapest, room=room)
    step = 0
    before = None
    while step < iterations:
        step += 1
        far, group = _best(some, centres, room)
        if float(far.sum()) < least:
            best, least = centres, float(far.sum())
        if step % period == 0 and step <= iterations - period:
            centres, before = _reseeded(some, best, room), None
            continue
        if before is not None and torch.equal(group, before):
            # the same again until grids begin anew
            left = period - step % period
            if step + left > iterations - period:
                break
            step += left - 1
            continue
        centres, before = ends(some, centres, group), group
    # the last step is of all rows
    far, group = _best(points, best, room)
    centres = ends(points, best, group)
    if _best(points, centres, room)[0].sum() < far.sum():
        best = centres
    return _sorted(best)


def _best(
    points: Tensor, grids: Tensor, room: float | None
) -> tuple[Tensor, Tensor]:
    """Least cost of each point, and the first grid that has it."""
    costs = grid_costs(points, grids, room)
    index = costs.argmin(1)
    return costs.gather(1, index[:, None])[:, 0], index


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


def _cheapest(
    points: Tensor, grids: Tensor, group: Tensor, room: float
) -> Tensor:
    """Ends of least cost for each group; one without points stays.

    Convex, and quadratic as long as the same rows are clipped: Newton steps
    from the extremes.
    """
    count = torch.bincount(group, minlength=len(grids)).double()
    index = group[:, None].expand_as(points)
    low = grids.scatter_reduce(0, index, points, 'amin', include_self=False)
    high = grids.scatter_reduce(0, index, points, 'amax', include_self=False)
    low, high = low[:, 0].clamp(max=0), high[:, 1].clamp(min=0)
    width = room * count

    def sums(values: Tensor) -> Tensor:
        return grids.new_zeros(len(grids)).index_add_(0, group, values)

    for _ in range(NEWTON):
        # rows that are clipped, and the sum of their ends
        under = (points[:, 0] <= low[group]).double()
        over = (points[:, 1] >= high[group]).double()
        below, least = sums(under), sums(under * points[:, 0])
        above, most = sums(over), sums(over * points[:, 1])
        # (above + width) high - width low = most; and so for low
        whole = (above + width) * (below + width) - width * width
        whole = whole.clamp(min=1e-300)
        high = ((below + width) * most + width * least) / whole
        low = ((above + width) * least + width * most) / whole
        # an end beyond 0 is 0, and the other one is by itself
        positive, negative = low > 0, high < 0
        high = torch.where(positive, most / (above + width), high)
        low = torch.where(negative, least / (below + width), low)
        low, high = low.clamp(max=0), high.clamp(min=0)
    ends = torch.stack([low, high], 1)
    return torch.where(count[:, None] > 0, ends, grids)


def _reseeded(points: Tensor, centres: Tensor, room: float | None) -> Tensor:
    """Moves grids that are hardly missed to where one is missing."""
    centres = centres.clone()
    far, group = _best(points, centres, room)
    lost = torch.zeros(len(centres), dtype=far.dtype, device='cpu')
    lost.index_add_(0, group, _second(points, centres, group, room) - far)
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


def _second(
    points: Tensor, grids: Tensor, group: Tensor, room: float | None
) -> Tensor:
    """Least cost of each point by the other grids."""
    costs = grid_costs(points, grids, room)
    return costs.scatter_(1, group[:, None], float('inf')).amin(1)
