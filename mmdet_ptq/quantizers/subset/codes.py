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


def nearest_codes(ratio: Tensor, magnitudes: Tensor) -> Tensor:
    """Codes of the values nearest to ``ratio``, at scale 1.

    Args:
        ratio (Tensor): float32, any shape.
        magnitudes (Tensor): float32 ``[K]``, ascending.

    Returns:
        Tensor: int32 of ratio's shape, indices into :func:`value_table`.
    """
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    near = torch.bucketize(ratio.abs().contiguous(), middle, out_int32=True)
    # codes of +m_0 and of -m_0
    below = len(magnitudes) - 1
    above = below + int(magnitudes[0] != 0)
    return torch.where(ratio < 0, below - near, above + near)
