# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The values of LLAQ: ``2^((q - a) / k)`` on each side of a centre.

Shapes: K rows (output channels), 2 sides (0 below the centre, 1 above),
N = 2^(bits - 1) codes a side.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

K_MIN, K_MAX = 0.2, 16.0
MAX_EXPONENT = 60.0
# A side without a weight gets values this far below the other side's: the
# best use of its codes, as they stand next to the centre.
EMPTY = 1e-8

# Lowest nonzero and highest value for u = |w - mu| / lambda of a Laplace
# density, by bits: without and with a zero code. Minima of
# sum_q int (u - l_q)^2 e^-u du over the cells of a geometric grid with
# thresholds halfway, each integral in closed form: Nelder-Mead on
# (log c_min, log c_max) from 25 starts with k <= 16; at 8 bits, where that
# bound is met with a zero code, a scan of c_max at k = 16.
LAPLACE = {
    2: ((0.5936, 2.594), (2.0, 2.0)),
    3: ((0.4253, 4.301), (0.8944, 4.061)),
    4: ((0.2776, 6.117), (0.4970, 6.068)),
    5: ((0.1796, 7.796), (0.2991, 7.830)),
    6: ((0.1162, 9.351), (0.1871, 9.416)),
    7: ((0.0753, 10.83), (0.1192, 10.90)),
    8: ((0.0488, 12.27), (0.0567, 13.31)),
}
# The highest value where k is fixed at 1, found likewise. More values than 8
# a side only add smaller ones.
LAPLACE_TOP_K1 = {2: 1.81, 3: 3.98}
LAPLACE_TOP_K1_MORE = 9.15


def half(x: Tensor, step: float = 0.0) -> Tensor:
    """The nearest float32 that float16 can hold, saturating.

    Args:
        x (Tensor): float32 or float64.
        step (float): Rounds to multiples of this power of two first.

    Returns:
        Tensor: float32 of its shape.
    """
    if step:
        x = torch.round(x / step) * step
    top = torch.finfo(torch.float16).max
    return x.clamp(-top, top).to(torch.float16).to(torch.float32)


def power(exponent: Tensor) -> Tensor:
    """``2^exponent``, the same bits wherever in a tensor it stands.

    In float32 ``torch.exp2`` rounds differently in vector lanes and in the
    rest, and between octaves: the values of a shift form would miss those of
    the table by a last bit.

    Args:
        exponent (Tensor): float32, clamped to +-60.

    Returns:
        Tensor: float32 of its shape, differentiable.
    """
    exponent = exponent.clamp(-MAX_EXPONENT, MAX_EXPONENT)
    return torch.exp2(exponent.to(torch.float64)).to(torch.float32)


@dataclass(frozen=True)
class Grid:
    """The shape of a codebook, without its parameters.

    Attributes:
        bits (int): Bit-width, 2 to 8.
        zero (bool): Whether q = 0 stands for the centre itself.
        log (bool): Thresholds at the geometric mean of two values (the
            printed rounding of psi) rather than the arithmetic one.
        literal (bool): Keep the printed dequantizer and so k = 1.
    """

    bits: int
    zero: bool
    log: bool = False
    literal: bool = False

    @property
    def top(self) -> int:
        """The highest q of a side, N - 1."""
        return (1 << (self.bits - 1)) - 1

    @property
    def first(self) -> int:
        """The lowest q that stands for a value apart from the centre."""
        return int(self.zero)

    def start(self) -> tuple[float, float]:
        """The best grid for a Laplace density of lambda = 1.

        Returns:
            tuple[float, float]: ``k = (top - first) / log2(c_max / c_min)``
            and c_min, the lowest nonzero magnitude.
        """
        low, high = LAPLACE[self.bits][self.first]
        steps = self.top - self.first
        if self.literal:
            high = LAPLACE_TOP_K1.get(self.bits, LAPLACE_TOP_K1_MORE)
            return 1.0, high / 2.0**steps
        if steps == 0:  # one value a side: any k does
            return 1.0, low
        return min(steps / math.log2(high / low), K_MAX), low

    def split(self, k: Tensor, a: Tensor, q: Tensor | int) -> Tensor:
        """Magnitude at which q ends and q + 1 begins, none being zero.

        Args:
            k (Tensor): float32, any shape.
            a (Tensor): float32, broadcastable with ``k``.
            q (Tensor | int): Codes, broadcastable; -1 and N - 1 give the
                ends beyond which psi is clipped.

        Returns:
            Tensor: float32, of the joint shape.
        """
        # clamped before the mean, or values that are would lie beyond it
        low, high = (
            ((p - a) / k).clamp(-MAX_EXPONENT, MAX_EXPONENT)
            for p in (q, q + 1)
        )
        if self.log:
            return power((low + high) / 2)
        return (power(low) + power(high)) / 2

    def magnitudes(self, k: Tensor, a: Tensor) -> Tensor:
        """Magnitudes of the codes of a side, ``2^((q - a) / k)``.

        Args:
            k (Tensor): float32 ``[...]``.
            a (Tensor): float32, broadcastable with ``k``.

        Returns:
            Tensor: float32 ``[..., N]``, ascending; the first is 0 with a
            zero code.
        """
        q = torch.arange(self.top + 1, device=a.device, dtype=a.dtype)
        found = power((q - a[..., None]) / k[..., None])
        return torch.where(q < self.first, 0.0, found)

    def splits(self, k: Tensor, a: Tensor) -> Tensor:
        """Thresholds between the codes of a side, ``[..., N - 1]``."""
        k, a = k[..., None], a[..., None]
        q = torch.arange(self.top, device=a.device, dtype=a.dtype)
        found = self.split(k, a, q)
        if self.zero and not self.log:
            # the value below is not that of psi = 0 but the centre
            found = torch.where(q == 0, power((1 - a) / k) / 2, found)
        return found

    def cover(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters whose top values stand at the ends of a range.

        Args:
            low (Tensor): Any shape ``[...]``.
            high (Tensor): Same shape.

        Returns:
            tuple[Tensor, Tensor]: k (a scalar) and a ``[..., 2]``, both
            float32 and as :func:`half` leaves them.
        """
        ends = torch.stack([-low, high], -1).to(torch.float64).clamp(min=0)
        if self.literal:  # one s for both sides
            ends = ends.amax(-1, keepdim=True).expand(ends.shape)
        k = rounded_k(torch.tensor(self.start()[0], device=low.device))
        return k, half(self.top - k * fill_empty(ends).log2(), 2.0**-10)

    def values(
        self, k: Tensor, a: Tensor, mu: Tensor, moment: Tensor | None = None
    ) -> Tensor:
        """The value of every code, ascending.

        Args:
            k (Tensor): float32, broadcastable with ``a``.
            a (Tensor): float32 ``[..., 2]``.
            mu (Tensor): float32 ``[...]``.
            moment (Tensor, optional): float32 ``[..., 2]``, only if
                literal: the sum of ``u^(1 - k)`` over a side, per element
                of the row.

        Returns:
            Tensor: float32 ``[..., V]``: V is 2 N, or 2 N - 1 with a zero
            code.
        """
        sizes = self.magnitudes(k, a)
        if moment is not None:
            # s_w* 2^q with s_w* = mean(u / (u^k 2^a)), alike on both sides
            q = torch.arange(self.top + 1, device=a.device)
            steps = power(q - a[..., None]) * (q >= self.first)
            scaled = (moment[..., None] * steps).sum(-2, keepdim=True)
            sizes = scaled.expand(sizes.shape)
        below = sizes[..., 0, self.first :].flip(-1)
        mu = mu[..., None]
        return torch.cat([mu - below, mu + sizes[..., 1, :]], -1)

    def bounds(
        self, k: Tensor, a: Tensor, mu: Tensor, values: Tensor
    ) -> Tensor:
        """Where each code but the first begins, itself included.

        Args:
            k (Tensor): float32, broadcastable with ``a``.
            a (Tensor): float32 ``[..., 2]``.
            mu (Tensor): float32 ``[...]``.
            values (Tensor): float32 ``[..., V]``, of :meth:`values`.

        Returns:
            Tensor: float32 ``[..., V - 1]``, ascending. Unless literal,
            such that each value has its own code.
        """
        splits = self.splits(k, a)
        mu = mu[..., None]
        parts = [mu - splits[..., 0, :].flip(-1), mu + splits[..., 1, :]]
        low, high = values[..., :-1], values[..., 1:]
        if not self.zero:
            middle = mu
            if not self.log and not self.literal:
                # sides of unlike size: nearest value, over the centre too
                middle = ((low + high) / 2)[..., self.top, None]
            parts.insert(1, middle)
        bounds = torch.cat(parts, -1)
        if self.literal:
            return bounds
        # values next to a large mu may lie closer than float32 resolves
        return torch.where(bounds <= low, high, bounds)


def rounded_k(k: Tensor) -> Tensor:
    """The k within its bounds, with a logarithm that float16 can hold."""
    return power(half(k.clamp(K_MIN, K_MAX).log2()))


def fill_empty(scale: Tensor) -> Tensor:
    """Gives sides of size 0 a small one.

    Args:
        scale (Tensor): float64 ``[..., 2]``, not negative.

    Returns:
        Tensor: Same shape, positive.
    """
    other = scale.amax(-1, keepdim=True)
    return torch.where(
        scale > 0, scale, torch.where(other > 0, other * EMPTY, EMPTY)
    )
