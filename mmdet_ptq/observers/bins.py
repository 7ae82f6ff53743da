# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bins whose width is a power of two."""

import torch
from torch import Tensor

# Below the exponent of the smallest bin of the smallest subnormal float32.
MIN_EXPONENT = -170


def exponents(low: Tensor, high: Tensor, half: int) -> Tensor:
    """Smallest e such that ``[-half * 2^e, half * 2^e)`` holds a range.

    Args:
        low (Tensor): float32, any shape; infinite where there is no data.
        high (Tensor): Same shape.
        half (int): A power of two.

    Returns:
        Tensor: int32 of that shape.
    """
    fill = torch.isfinite(low) & torch.isfinite(high)
    down = torch.where(fill, -low, 0.0).double().clamp(min=0.0)
    up = torch.where(fill, high, 0.0).double().clamp(min=0.0)
    # x = f * 2^q with f in [1/2, 1): x < 2^q, and x <= 2^(q-1) if f = 1/2
    fraction, q_down = torch.frexp(down)
    q_down = q_down - (fraction == 0.5).to(q_down.dtype)
    q_up = torch.frexp(up).exponent
    lowest = MIN_EXPONENT + half.bit_length() - 1
    q_down = torch.where(down > 0, q_down, lowest)
    q_up = torch.where(up > 0, q_up, lowest)
    return torch.maximum(q_down, q_up).int() - (half.bit_length() - 1)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2 ** exponent`` in float64 (torch.ldexp works in float32)."""
    return torch.exp2(exponent.to(torch.float64))


def coarsen(counts: Tensor, by: Tensor) -> Tensor:
    """Merges ``2^by`` neighbours, aligned at zero.

    Args:
        counts (Tensor): int64 ``[R, B]``; bin ``B/2 + i`` covers ``[i,
            i+1)``.
        by (Tensor): int ``[R]``, at least 0, for each row.

    Returns:
        Tensor: ``[R, B]`` in bins ``2^by`` times as wide.
    """
    half = counts.shape[1] // 2
    place = torch.arange(-half, half, device=counts.device)
    index = place >> by.clamp(max=62).long()[:, None]
    return torch.zeros_like(counts).scatter_add_(1, index + half, counts)
