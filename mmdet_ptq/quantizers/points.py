# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Candidates of least error on weighted points."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .capabilities import Refines, Searchable

#: elements tried at once
BLOCK = 1 << 20
#: equal shares of a row that stand for it where candidates are made
SAMPLES = 512


def power_(x: Tensor, p: float) -> Tensor:
    """``|x| ** p`` in place."""
    if p == 2:
        return x.square_()
    x.abs_()
    # twice as fast as torch.pow; 0 goes through -inf to 0
    return x if p == 1 else x.log2_().mul_(p).exp2_()


Candidates = tuple[Tensor, ...]


@torch.no_grad()
def errors_of(
    quantizer: Searchable,
    points: Tensor,
    shares: Tensor,
    candidates: Candidates,
    p: float,
) -> Tensor:
    """The error of each candidate.

    Args:
        quantizer (Searchable): Tries them.
        points (Tensor): float32 ``[K, B]``.
        shares (Tensor): float32 ``[K, B]``, weights of the points.
        candidates (tuple[Tensor, ...]): A named tuple of tensors ``[K, C]``.
        p (float): Exponent.

    Returns:
        Tensor: float32 ``[K, C]``, sums of ``share |x - q(x)|^p``.
    """
    out = torch.empty_like(candidates[0], dtype=torch.float32)
    for at in _parts(out.shape[1], points.numel()):
        some = type(candidates)(*(c[:, at] for c in candidates))
        off = quantizer.trial(points, some).sub_(points[:, None])
        out[:, at] = power_(off, p).mul_(shares[:, None]).sum(-1)
    return out


def _parts(count: int, each: int) -> Iterator[slice]:
    step = max(1, BLOCK // max(1, each))
    return (slice(i, i + step) for i in range(0, count, step))


def pick(candidates: Candidates, index: Tensor) -> Candidates:
    """Candidates ``[K, W]`` by their index ``[K, W]``."""
    return type(candidates)(*(c.gather(1, index) for c in candidates))


def equal_samples(points: Tensor, shares: Tensor) -> Tensor:
    """Points as often as they stand for, the outermost ones included.

    Args:
        points (Tensor): float32 ``[K, B]``.
        shares (Tensor): float32 ``[K, B]``.

    Returns:
        Tensor: float32 ``[K, SAMPLES]``, ascending.
    """
    points, order = points.sort(1)
    total = shares.gather(1, order).double().cumsum(1)
    at = torch.linspace(0, 1, SAMPLES, dtype=total.dtype, device=total.device)
    # the first point that stands for something, and the last
    wanted = at * total[:, -1:] * (1 - 1e-9)
    found = torch.searchsorted(total, wanted, right=True)
    return points.gather(1, found.clamp_(max=points.shape[1] - 1))


def progressive_search(
    quantizer: Refines,
    points: Tensor,
    shares: Tensor,
    p: float,
    count: int = 128,
    keep: int = 16,
    steps: int = 4,
) -> Candidates:
    """Fast progressive combining search (AdaLog, 2024) on points.

    Args:
        quantizer (Refines): Makes candidates.
        points (Tensor): float32 ``[K, B]``.
        shares (Tensor): float32 ``[K, B]``.
        p (float): Exponent of the error.
        count (int): Candidates to begin with, and after each refinement.
        keep (int): How many of each row go on.
        steps (int): Refinements.

    Returns:
        tuple[Tensor, ...]: The best candidate of each row, ``[K, 1]``.
    """
    found = quantizer.coarse(equal_samples(points, shares), count)
    for step in range(steps + 1):
        error = errors_of(quantizer, points, shares, found, p)
        few = min(keep if step < steps else 1, error.shape[1])
        found = pick(found, error.topk(few, 1, largest=False).indices)
        if step < steps:
            found = quantizer.refined(found, count // keep)
    return found


def better_of(
    quantizer: Searchable,
    points: Tensor,
    shares: Tensor,
    p: float,
    old: Candidates,
    new: Candidates,
) -> Candidates:
    """For each row the one that errs less; both are ``[K, 1]``."""
    both = type(new)(
        *(torch.cat([a, b], 1) for a, b in zip(old, new, strict=True))
    )
    error = errors_of(quantizer, points, shares, both, p)
    return pick(both, error.argmin(1, keepdim=True))
