# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Finds the parameters of LLAQ from a weight."""

import torch
from torch import Tensor
from torch.nn import functional

from .codebook import Grid, fill_empty, half, rounded_k

# Candidates around the start: factors of k, and offsets of a in codes.
FACTORS = (0.8, 0.9, 1.0, 1.12, 1.25)
OFFSETS = (-0.5, -0.25, 0.0, 0.25, 0.5)
# Numbers worked on at once, a bound on memory.
CHUNK = 1 << 22


def centre(rows: Tensor) -> Tensor:
    """The median of each row, the maximum likelihood centre of Laplace.

    Args:
        rows (Tensor): float32 ``[K, M]``.

    Returns:
        Tensor: float32 ``[K]`` that float16 can hold; 0 where the median is
        within a tenth of the mean deviation from it, so that most channels
        need no correction term at inference.
    """
    if rows.shape[1] == 0:
        return rows.new_zeros(rows.shape[0])
    middle = rows.median(-1).values
    spread = (rows - middle[:, None]).abs().mean(-1)
    return half(torch.where(middle.abs() > 0.1 * spread, middle, 0.0))


def side_means(rows: Tensor) -> Tensor:
    """lambda: the mean magnitude of each side, the estimate for Laplace.

    Args:
        rows (Tensor): float32 ``[K, M]``, centred.

    Returns:
        Tensor: float64 ``[K, 2]``, positive: see :func:`fill_empty`.
    """
    sides = []
    for side in (-rows, rows):
        count = (side > 0).sum(-1).clamp(min=1)
        sides.append(side.clamp(min=0).sum(-1, dtype=torch.float64) / count)
    return fill_empty(torch.stack(sides, -1))


def fit_rows(grid: Grid, rows: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """Starts from the Laplace scale and tries the grids around it.

    Args:
        grid (Grid): The shape of the codebook.
        rows (Tensor): float32 ``[K, M]``, centred.
        shared (bool): One k for all rows and sides.

    Returns:
        tuple[Tensor, Tensor]: float32 k, ``[K, 2]`` or ``[1, 1]``, and a
        ``[K, 2]``, of least squared error among the candidates.
    """
    k, low = grid.start()
    ks = rounded_k(rows.new_tensor([1.0] if grid.literal else FACTORS) * k)
    scale = side_means(rows)
    if grid.literal:
        scale = scale.amax(-1, keepdim=True).expand(scale.shape)
    a = grid.first - ks * (scale * low).log2()[..., None]
    return search(grid, rows, ks, a, OFFSETS, shared)


def search(
    grid: Grid,
    rows: Tensor,
    ks: Tensor,
    a: Tensor,
    offsets: tuple[float, ...],
    shared: bool,
) -> tuple[Tensor, Tensor]:
    """The best of all pairs of a k and an offset.

    Args:
        grid (Grid): The shape of the codebook.
        rows (Tensor): float32 ``[K, M]``, centred.
        ks (Tensor): float32 ``[F]``, of :func:`rounded_k`.
        a (Tensor): ``[K, 2, F]``.
        offsets (tuple[float, ...]): D offsets to a.
        shared (bool): One k for all rows and sides.

    Returns:
        tuple[Tensor, Tensor]: As :func:`fit_rows`.
    """
    a = half(a[..., None] + a.new_tensor(offsets), 2.0**-10)
    k = ks.repeat_interleave(len(offsets))
    errors = torch.cat(
        [
            side_errors(grid, r, k, part.flatten(2)).reshape(part.shape)
            for r, part in _chunks(grid, rows, a)
        ]
    )
    if grid.literal:  # one s for both sides, so they need the same a
        errors = errors.sum(1, keepdim=True).expand(errors.shape)
    errors, at = errors.min(-1)
    a = a.gather(-1, at[..., None])[..., 0]
    if shared:
        best = errors.sum((0, 1)).argmin()
        return ks[best].reshape(1, 1), a[..., best]
    best = errors.argmin(-1)
    return ks[best], a.gather(-1, best[..., None])[..., 0]


def side_errors(grid: Grid, rows: Tensor, k: Tensor, a: Tensor) -> Tensor:
    """Squared errors of candidate codebooks, each side by itself.

    Exact: sorting once and taking differences of running sums costs
    O(N log M) a candidate instead of O(M).

    Args:
        grid (Grid): The shape of the codebook.
        rows (Tensor): float32 ``[K, M]``, centred.
        k (Tensor): float32 ``[C]`` candidates.
        a (Tensor): float32 ``[K, 2, C]``.

    Returns:
        Tensor: float64 ``[K, 2, C]``, summed over a side.
    """
    up = rows.sort(-1).values
    # ascending magnitudes of either side; the other side's are negative and
    # come first
    side = torch.stack([-up.flip(-1), up], 1)
    above = (rows >= 0).sum(-1)
    begin = torch.stack([above, rows.shape[1] - above], 1)[..., None, None]
    cuts = grid.splits(k, a)
    at = torch.searchsorted(side, cuts.flatten(2)).reshape(cuts.shape)
    begin = begin.expand(*a.shape, 1)
    end = torch.full_like(begin, rows.shape[1])
    at = torch.cat([begin, at, end], -1)
    wide = side.to(torch.float64)
    total, square = (
        functional.pad(s.cumsum(-1), (1, 0))
        .gather(2, at.flatten(2))
        .reshape(at.shape)
        .diff(dim=-1)
        for s in (wide, wide.square())
    )
    value = grid.magnitudes(k, a).to(torch.float64)
    error = square - 2 * value * total + value.square() * at.diff(dim=-1)
    return error.sum(-1)


def _chunks(
    grid: Grid, rows: Tensor, a: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of rows and their candidates within the memory bound."""
    cost = 2 * max(rows.shape[1], a[0, 0].numel() * (grid.top + 2), 1)
    size = max(1, CHUNK // cost)
    return list(zip(rows.split(size), a.split(size), strict=True))
