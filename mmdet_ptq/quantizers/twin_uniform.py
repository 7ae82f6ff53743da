# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Twin uniform: two step sizes, one for each part of the values."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import number, one_of
from ..registry import QUANTIZERS
from .capabilities import FitsPoints
from .points import better_of, errors_of, pick
from .stored_table import (
    MAX_SCALE,
    MIN_SCALE,
    Grid,
    StoredTableQuantizer,
    grid_of,
)

FORMS = ('softmax', 'gelu')
#: exponents of the split that are tried, from 0
SPLITS = 20
#: exponents that tell two aligned steps apart
ALIGNED = -5, 24
#: scales that a fit tries with each split
SCALES = 24


class Twins(NamedTuple):
    """Candidates, C for each of K rows; see :class:`TwinUniformQuantizer`.

    Attributes:
        high (Tensor): float32 ``[K, C]``.
        low (Tensor): float32 ``[K, C]``.
    """

    high: Tensor
    low: Tensor


@QUANTIZERS.register_module()
class TwinUniformQuantizer(StoredTableQuantizer, FitsPoints):
    """Two uniform grids, for post-softmax or post-GELU inputs.

    PTQ4ViT (Yuan et al., 2022): one bit tells the grid, b - 1 bits the step.
    With ``Q = 2^(b - 1)``

    - ``form='softmax'``: steps ``s 2^-i / (Q - 1)`` up to the split ``s
      2^-i``, steps ``s / (Q - 1)`` above it, up to s. i from 0 to 19.
    - ``form='gelu'``: Q steps below zero, Q - 1 steps above it.

    A value becomes the nearest of both grids. In the paper the grid follows
    from the side of the split, so that values just above it may become one
    far below; here the order of values is never reversed.

    Args:
        bits (int): Bit-width, 2 to 8.
        form (str): ``'softmax'`` or ``'gelu'``.
        fixed_scale (float, optional): s of a softmax, whatever the range; 1
            in the paper. By default it is the high end of the range.
        align_pow2 (bool): Of a GELU, whether one step is the other times a
            power of two from -5 to 24; those of a softmax always are.
        compat_sum (bool): Of a softmax, whether both grids are added up
            where they meet, as in the authors' code: each value is too high
            by the split, or by the nearest step of the upper grid to it.
            Only to compare with their numbers: a value that was quantized
            would change once more.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'``.

    Attributes:
        high (Tensor): float32 ``[K]`` or ``[L, K]``, the highest value.
        low (Tensor): float32, shaped like ``high``: the split of a softmax,
            the magnitude of the lowest value of a GELU.

    Raises:
        ValueError: If an argument is not among the allowed values, or is
            for the other form.
    """

    parameter_names = ('high', 'low')
    high: Tensor
    low: Tensor

    def __init__(
        self,
        bits: int = 4,
        form: str = 'softmax',
        fixed_scale: float | None = None,
        align_pow2: bool = False,
        compat_sum: bool = False,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        super().__init__(bits, granularity, axis, group_size, per_level, role)
        self.softmax = one_of('form', form, FORMS) == 'softmax'
        given = dict(fixed_scale=fixed_scale, compat_sum=compat_sum)
        if self.softmax:
            given = dict(align_pow2=align_pow2)
        for name, value in given.items():
            if value:
                raise ValueError(
                    f'{name}={value!r} is not for form={form!r}; remove it'
                )
        if fixed_scale is not None:
            number('fixed_scale', fixed_scale, above=True)
        self.fixed_scale = fixed_scale
        self.align_pow2, self.compat_sum = bool(align_pow2), bool(compat_sum)

    @property
    def steps(self) -> int:
        """Q - 1, the steps of one grid above zero."""
        return (1 << self.bits - 1) - 1

    def scale_of(self, high: Tensor) -> Tensor:
        """Highest value for a high end, float32 of its shape."""
        if self.fixed_scale is not None:
            return torch.full_like(high, self.fixed_scale)
        return high.clamp(MIN_SCALE, MAX_SCALE)

    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`StoredTableQuantizer.of_range`.

        The split of a softmax is at an eighth of the scale.
        """
        high = self.scale_of(high)
        if self.softmax:
            return high, high / 8
        low = (-low).clamp(MIN_SCALE, MAX_SCALE)
        if not self.align_pow2:
            return high, low
        above, below = high / self.steps, low / (self.steps + 1)
        below = below.maximum(above / 2 ** ALIGNED[1])
        exponent = (above / below).log2().round().clamp(*ALIGNED)
        high = below * exponent.exp2() * self.steps
        return self.scale_of(high), below * (self.steps + 1)

    def grid(self, *numbers: Tensor) -> Grid:
        """See :meth:`StoredTableQuantizer.grid`."""
        high, low = (n.to(torch.float64)[..., None] for n in numbers)
        n = self.steps
        part = torch.arange(n + 1, dtype=torch.float64, device=high.device)
        above = high * (part[1:] / n)
        if not self.softmax:
            below = low * (-(part + 1) / (n + 1)).flip(0)
            return grid_of(
                torch.cat([below, torch.zeros_like(low), above], -1)
            )
        below = low * (part / n)
        if self.compat_sum:
            return _added(below, above)
        return grid_of(torch.cat([below, above.maximum(low)], -1))

    def candidates(
        self, low: Tensor, high: Tensor, fractions: Tensor
    ) -> tuple[Tensor, ...]:
        """See :meth:`Searchable.candidates`.

        Of a softmax with a ``fixed_scale``: splits, as many as there are
        shares, up to the 20 that there are and then the last again. Of a
        GELU: shares of the high end; the low one stays, as in the paper.
        """
        if not self.softmax:
            high = high[:, None] * fractions
            return Twins(*self.of_range(low[:, None].expand_as(high), high))
        if self.fixed_scale is None:
            return super().candidates(low, high, fractions)
        scale = self.scale_of(high[:, None].expand(-1, len(fractions)))
        exponent = torch.arange(len(fractions)).clamp(max=SPLITS - 1)
        return Twins(scale, scale * torch.exp2(-exponent.to(scale)))

    def fit_points(
        self, points: Tensor, shares: Tensor, p: float = 2.0, level: int = 0
    ) -> None:
        """See :meth:`FitsPoints.fit_points`.

        Every split with 24 scales, then finer ones around the best; what
        a row has stays where nothing is better. A GELU keeps what its
        range gave: nothing is open.
        """
        self._rows(level)
        if not self.softmax:
            return
        top = torch.where(shares > 0, points, 0).amax(1, keepdim=True)
        device = points.device
        splits = torch.exp2(-torch.arange(SPLITS, device=device).float())
        at = torch.arange(1, SCALES + 1, device=device) / SCALES
        if self.fixed_scale is not None:
            at = at[-1:]
        middle = at[-1:]
        for pitch in (1.0, 0.125):
            around = at if pitch == 1 else middle + (at - 0.5) * pitch
            scale = self.scale_of(top * around.clamp(min=0) ** 2)
            shape = *scale.shape, SPLITS
            found = Twins(
                scale[..., None].expand(shape).flatten(1),
                (scale[..., None] * splits).flatten(1),
            )
            error = errors_of(self, points, shares, found, p)
            index = error.argmin(1, keepdim=True)
            middle = around.expand(scale.shape).gather(1, index // SPLITS)
        old = Twins(*(n.to(points)[:, None] for n in self.numbers_of(level)))
        new = pick(found, index)
        best = better_of(self, points, shares, p, old, new)
        self.set_level(level, *(t[:, 0] for t in best))

    def parameter_bits(self, rows: int) -> int:
        """32 bits a number, 8 bits one that is a power of two."""
        bits = 0 if self.fixed_scale is not None else 32
        return rows * (bits + (8 if self.softmax or self.align_pow2 else 32))

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return (
            f'{super().extra_repr()}, form={FORMS[not self.softmax]!r}, '
            f'fixed_scale={self.fixed_scale}, align_pow2={self.align_pow2}, '
            f'compat_sum={self.compat_sum}'
        )


def _added(below: Tensor, above: Tensor) -> Grid:
    """The sum of both grids, each clipped at the split.

    Args:
        below (Tensor): float64 ``[..., Q]``, from 0 to the split.
        above (Tensor): float64 ``[..., Q - 1]``, from a step to the scale.
    """
    split, step = below[..., -1:], above[..., :1]
    nearest = torch.round(split / step) * step
    table = torch.cat([below + nearest, split + above.maximum(nearest)], -1)
    ends = (below[..., 1:] + below[..., :-1]) / 2
    later = torch.where(
        above > nearest * (1 + 1e-9), above - step / 2, ends[..., -1:]
    )
    bounds = torch.cat([ends, later], -1)
    return Grid(table.to(torch.float32), bounds.to(torch.float32))
