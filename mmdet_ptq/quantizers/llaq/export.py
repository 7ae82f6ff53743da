# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forms of LLAQ that a device computes with: a table, or shifts."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from .codebook import half, power
from .fit import search
from .quantizer import LLAQuantizer

# Offsets of a, in codes, that a refit tries.
OFFSETS = tuple(i / 8 for i in range(-16, 17))
# Rounds of encoding and least squares after that; it converges in a few.
ROUNDS = 3
# At 6 bits a shift would reach 62.
MAX_BITS = 5


class ShiftForm(NamedTuple):
    """``w_hat = mu + sign * (scale << shift)``.

    Attributes:
        quantizer (LLAQuantizer): The one that it reproduces, bit for bit.
        side (Tensor): int32 ``[V]``, by code: -1, +1, or 0 for mu itself.
        shift (Tensor): int32 ``[K, V]``, by channel and code, 0 or more.
        scale (Tensor): float32 ``[K, 2]``, below mu and above.
        mu (Tensor): float32 ``[K]``.
    """

    quantizer: LLAQuantizer
    side: Tensor
    shift: Tensor
    scale: Tensor
    mu: Tensor

    def values(self) -> Tensor:
        """The value of every code, float32 ``[K, V]``."""
        scale = self.scale[:, (self.side > 0).long()]
        return self.mu[:, None] + self.side * scale * torch.exp2(self.shift)


def lut(quantizer: LLAQuantizer) -> Tensor:
    """The value of every code, exactly what ``decode`` gives.

    Args:
        quantizer (LLAQuantizer): Fitted.

    Returns:
        Tensor: float32 ``[K, V]``: V is ``2^bits``, or ``2^bits - 1`` with
        a zero code.

    Raises:
        CalibrationError: If it is not fitted.
    """
    return quantizer.codebook().detach()


@torch.no_grad()
def shift_form(quantizer: LLAQuantizer, weight: Tensor) -> ShiftForm:
    """Makes every magnitude a power of two times the lowest of its side.

    Projects k to 1 or 1/2, whichever errs less on the weight, so that
    ``2^(q / k)`` is a shift by q or 2 q; finds a anew, by search and then by
    least squares of the scale with the codes held.

    Args:
        quantizer (LLAQuantizer): Fitted, of 2 to 5 bits; left as it is.
        weight (Tensor): The weight it was fitted to.

    Returns:
        ShiftForm: Shifts and scales, and the projected quantizer.

    Raises:
        CalibrationError: If it is not fitted.
        ValueError: If its form is not ``'invertible'``, or it has more than
            5 bits.
    """
    grid = quantizer.grid
    if grid.literal or grid.bits > MAX_BITS:
        raise ValueError(
            "shift_form needs form='invertible' and at most "
            f'{MAX_BITS} bits, got {quantizer}'
        )
    k, a = quantizer.parameters_of()
    new = copy.deepcopy(quantizer)
    new.learn_table(False)
    mu = new.mu[:, None]
    rows = new.granularity.rows(weight.detach().to(torch.float32)) - mu
    # the top values stay about where they are
    ks = rows.new_tensor([1.0, 0.5])
    a = grid.top - ks * ((grid.top - a) / k)[..., None]
    k, new.a = search(grid, rows, ks, a, OFFSETS, new.shared)
    new.log_k = k.log2()
    q = torch.arange(grid.top + 1, device=a.device, dtype=torch.int32)
    q = torch.cat([q[grid.first :].flip(0), q])
    side = torch.ones_like(q)
    side[: len(q) // 2] = -1
    side[(q < grid.first).nonzero()] = 0
    below = side < 0
    k = k.expand(new.a.shape)
    shift = torch.where(below, q / k[:, :1], q / k[:, 1:]).to(torch.int32)
    for _ in range(ROUNDS):
        codes = new.granularity.rows(new.encode(weight)).to(torch.int64)
        steps = (side * torch.exp2(shift)).gather(1, codes)
        for i, mine in enumerate((steps.clamp(max=0), steps.clamp(min=0))):
            scale = (mine * rows).sum(1) / mine.square().sum(1)
            # a side without a code gives nan, and keeps its a
            refit = half(-k[:, i] * scale.log2(), 2.0**-10)
            new.a[:, i] = torch.where(scale > 0, refit, new.a[:, i])
    return ShiftForm(new, side, shift, power(-new.a / k), new.mu)
