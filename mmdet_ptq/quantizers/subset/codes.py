# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Codes and values of a subset of magnitudes, at scale 1."""

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
    zero = int(magnitudes[0] == 0)
    parts = [-magnitudes[zero:].flip(0), magnitudes, magnitudes[-1:]]
    return torch.cat(parts)[: 2 * len(magnitudes)]


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
        Tensor: float32 ``[..., N]``, ascending, for the values of
        :func:`value_table`: N is 2 M - 1, or 2 M - 2 if 0 is a magnitude.
    """
    middle = ((magnitudes[1:] + magnitudes[:-1]) / 2)[:, None]
    scale = scale[..., None, None]
    near = torch.arange(-3, 4, dtype=torch.int32, device=scale.device)
    near = ((middle * scale).view(torch.int32) + near).view(torch.float32)
    first = (near / scale > middle).to(torch.int32).argmax(-1, keepdim=True)
    above = near.gather(-1, first)[..., 0]
    # -x has the code of x mirrored: the last x before a bound begins there
    before = (above.view(torch.int32) - 1).view(torch.float32)
    parts = [-before.flip(-1), above]
    if magnitudes[0] != 0:
        parts.insert(1, torch.zeros_like(above[..., :1]))
    return torch.cat(parts, -1)
