# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rounding that makes up for the errors of what was rounded before."""

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

Round = Callable[[int, Tensor], Tensor]
"""``round(j, t)``: column j of a weight ``[G, R]`` to its nearest values"""

#: columns that are rounded before the others hear of it
BLOCK = 64


def damped(moments: Tensor, floor: Tensor, damping: float) -> Tensor:
    """Adds to the diagonal, so that a factorization exists.

    Args:
        moments (Tensor): ``[G, N, N]``, symmetric, of no negative value.
        floor (Tensor): ``[G]``, the least that is added; above 0.
        damping (float): Added too, as a share of the mean of the diagonal.

    Returns:
        Tensor: ``[G, N, N]``, a new tensor.
    """
    diagonal = moments.diagonal(dim1=1, dim2=2)
    extra = damping * diagonal.mean(1) + floor
    found = moments.clone()
    found.diagonal(dim1=1, dim2=2).add_(extra[:, None])
    return found


def inverse_root(moments: Tensor) -> Tensor | None:
    """Upper U with ``Uᵀ U`` the inverse, None if it cannot be found.

    Args:
        moments (Tensor): ``[G, N, N]``, symmetric.
    """
    # of the columns in reverse, so that R is upper with R Rᵀ = H; then the
    # inverse of H is (R⁻¹)ᵀ R⁻¹, and R⁻¹ is upper
    lower, failed = torch.linalg.cholesky_ex(moments.flip(1, 2))
    if bool(failed.any()):
        return None
    one = torch.eye(moments.shape[1], dtype=moments.dtype).to(moments)
    root = torch.linalg.solve_triangular(lower.flip(1, 2), one, upper=True)
    return root if bool(torch.isfinite(root).all()) else None


def solved(moments: Tensor, first: Tensor) -> Tensor | None:
    """``D H⁻¹``, None if it cannot be found.

    Args:
        moments (Tensor): H ``[G, N, N]``, symmetric.
        first (Tensor): D ``[G, R, N]``.
    """
    lower, failed = torch.linalg.cholesky_ex(moments)
    if bool(failed.any()):
        return None
    found = torch.cholesky_solve(first.mT, lower).mT
    return found if bool(torch.isfinite(found).all()) else None


def compensate(target: Tensor, root: Tensor, nearest: Round) -> Tensor:
    """Rounds column by column, each error pushed into the columns to come.

    Of all weights with the columns so far, the next column is rounded, and
    what its error does to the output is made up for as well as the columns
    not yet rounded can: by ``-e_j U[j, k] / U[j, j]`` (Frantar and Alistarh,
    Optimal Brain Compression, 2022, equation 3; Frantar et al., GPTQ, 2023,
    step 3).

    Args:
        target (Tensor): ``[G, R, N]``: R output channels in each
            of G groups, N columns.
        root (Tensor): ``[G, N, N]``, from :func:`inverse_root`.
        nearest (Callable): Rounds one column.

    Returns:
        Tensor: ``[G, R, N]`` of values of the grid.
    """
    left = target.clone()
    found = torch.empty_like(target)
    for start in range(0, target.shape[2], BLOCK):
        stop = min(start + BLOCK, target.shape[2])
        errors = left.new_empty(*left.shape[:2], stop - start)
        for j in range(start, stop):
            found[..., j] = nearest(j, left[..., j])
            error = (left[..., j] - found[..., j]) / root[:, None, j, j]
            left[..., j:stop] -= error[..., None] * root[:, None, j, j:stop]
            errors[..., j - start] = error
        left[..., stop:] -= errors @ root[:, start:stop, stop:]
    return found


def descend(
    found: Tensor,
    target: Tensor,
    moments: Tensor,
    nearest: Round,
    rounds: int,
) -> Tensor:
    """Moves one column at a time to the value that is best with the others.

    With the other columns as they are, the error is a parabola of a weight,
    so its best value is the one nearest to the vertex.

    Args:
        found (Tensor): ``[G, R, N]``, values of the grid.
        target (Tensor): ``[G, R, N]``.
        moments (Tensor): ``[G, N, N]``, with a diagonal above 0.
        nearest (Callable): Rounds one column.
        rounds (int): How often all columns are visited.

    Returns:
        Tensor: ``[G, R, N]`` of values of the grid, nowhere worse.
    """
    found = found.clone()
    slope = (target - found) @ moments
    columns = found.shape[2]
    for _, start in product(range(rounds), range(0, columns, BLOCK)):
        stop = min(start + BLOCK, columns)
        before = found[..., start:stop].clone()
        near = slope[..., start:stop].clone()
        for j in range(start, stop):
            steep = moments[:, None, j, j]
            step = near[..., j - start] / steep
            best = nearest(j, found[..., j] + step)
            change = best - found[..., j]
            near -= change[..., None] * moments[:, None, j, start:stop]
            found[..., j] = best
        slope -= (found[..., start:stop] - before) @ moments[:, start:stop]
    return found


def squared_error(found: Tensor, target: Tensor, moments: Tensor) -> Tensor:
    """``(t - w) H (t - w)ᵀ`` of each output channel.

    Args:
        found (Tensor): ``[G, R, N]``.
        target (Tensor): ``[G, R, N]``.
        moments (Tensor): ``[G, N, N]``.

    Returns:
        Tensor: ``[G, R]``.
    """
    off = target - found
    return ((off @ moments) * off).sum(2)
