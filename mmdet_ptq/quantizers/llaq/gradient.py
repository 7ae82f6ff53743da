# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The straight-through gradient of LLAQ to its input."""

from typing import Any

import torch
from torch import Tensor

from ..granularity import Granularity
from .codebook import Grid


def through(
    grid: Grid,
    grain: Granularity,
    k: Tensor,
    a: Tensor,
    mu: Tensor,
    x: Tensor,
    y: Tensor,
) -> Tensor:
    """Adds to ``y`` a gradient to ``x``, with psi straight through.

    It is ``|y - mu| / u`` (times k if literal) where psi is not clipped,
    else 0.

    Args:
        grid (Grid): The shape of the codebook.
        grain (Granularity): Of the rows of ``x``.
        k (Tensor): float32 ``[K, 2]`` or ``[1, 1]``, detached.
        a (Tensor): float32 ``[K, 2]``, detached.
        mu (Tensor): float32, broadcastable to ``x``.
        x (Tensor): The input, any shape and float type.
        y (Tensor): float32, the quantized input.

    Returns:
        Tensor: ``y`` with both gradients: to x, and its own to k and a.
    """
    k = k.expand(a.shape)
    d = x.detach().to(torch.float32) - mu
    u = d.abs()

    def of_side(param: Tensor) -> Tensor:
        """Picks the column of each element's side, ``[K, 2]`` to x's."""
        below, above = (grain.expand(p, x.shape) for p in param.unbind(1))
        return torch.where(d >= 0, above, below)

    slope = (y.detach() - mu).abs() / u
    if grid.literal:
        slope = slope * of_side(k)
    low = of_side(grid.split(k, a, grid.first - 1))
    high = of_side(grid.split(k, a, grid.top))
    slope = torch.where((u >= low) & (u < high), slope, 0.0)
    out: Tensor = _Through.apply(x, y, slope)  # type: ignore[no-untyped-call]
    return out


class _Through(torch.autograd.Function):
    """The second argument, with a slope to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, slope: Tensor) -> Tensor:
        """Gives ``y``."""
        ctx.save_for_backward(slope)
        ctx.dtype = x.dtype
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """``grad * slope`` to x, ``grad`` to y."""
        (slope,) = ctx.saved_tensors
        return (grad * slope).to(ctx.dtype), grad, None
