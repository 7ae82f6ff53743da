# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Codes and values of a subset of magnitudes, at scale 1."""

import math

import torch
from torch import Tensor


def value_table(magnitudes: Tensor) -> Tensor:
    """Values of all codes at scale 1.

    Args:
        magnitudes (Tensor): float32 ``[K]``, ascending.

    Returns:
        Tensor: float32 ``[2 K]``, ascending. If 0 is a magnitude, the top
        value stands twice instead.
    """
    below, top = -magnitudes.flip(0), magnitudes[-1:]
    joined = torch.cat([below[:-1], magnitudes, top])
    return torch.where(
        magnitudes[0] == 0, joined, torch.cat([below, magnitudes])
    )


def value_bounds(scale: Tensor, magnitudes: Tensor) -> Tensor:
    """Where each code but the first begins.

    The code of x is that of the value nearest to ``x / scale``, a float32
    quotient; of two as near, the one nearer to zero. Zero itself, if it is
    no value, becomes the least positive one. As the quotient rounds, a
    bound may be an ulp or two off the middle of two values times the
    scale; the neighbours of that are tried.

    Args:
        scale (Tensor): float32 ``[...]``.
        magnitudes (Tensor): float32 ``[M]``, ascending.

    Returns:
        Tensor: float32 ``[..., 2 M - 1]``, ascending, for the values of
        :func:`value_table`. If 0 is a magnitude, the last is infinite.
    """
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    near = [middle * scale[..., None]]
    zero, infinite = torch.zeros_like(near[0]), near[0] + math.inf
    for _ in range(3):
        near.insert(0, torch.nextafter(near[0], zero))
        near.append(torch.nextafter(near[-1], infinite))
    tried = torch.stack(near, -1)
    beyond = tried / scale[..., None, None] > middle[:, None]
    first = beyond.to(torch.int32).argmax(-1, keepdim=True)
    above = tried.gather(-1, first)[..., 0]
    # -x has the code of x mirrored: the last x before a bound begins there
    below = -torch.nextafter(above, zero).flip(-1)
    return torch.where(
        magnitudes[0] == 0,
        torch.cat([below, above, infinite[..., :1]], -1),
        torch.cat([below, zero[..., :1], above], -1),
    )
