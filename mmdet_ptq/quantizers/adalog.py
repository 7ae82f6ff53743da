# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaLog: powers of a base that is searched for."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..registry import QUANTIZERS
from .capabilities import FitsPoints, Refines
from .log2 import PowersQuantizer
from .points import better_of, progressive_search
from .stored_table import MAX_SCALE, MIN_SCALE
from .table_encoding import TableEncoding

ROOT = 37
Q_MIN, Q_MAX = 10, 137
#: scales that are combined with q's
SCALES = 8
#: of the points of a plane that are far from each other, however many: the
#: fractional parts of multiples of these (Roberts, 2018)
_SPREAD = 0.7548776662466927, 0.5698402909980532


class ScalesAndSteps(NamedTuple):
    """Candidates, C for each of K rows, and how far their neighbours are.

    Attributes:
        scale (Tensor): float32 ``[K, C]``.
        q (Tensor): float32 ``[K, C]``, whole.
        between_scales (Tensor): float32 ``[K, C]``, a difference.
        between_steps (Tensor): float32 ``[K, C]``, a difference of log2 q.
    """

    scale: Tensor
    q: Tensor
    between_scales: Tensor
    between_steps: Tensor


@dataclass(frozen=True, eq=False)
class ShiftEncoding(TableEncoding):
    """A table whose values are whole numbers, shifted and scaled.

    The value of a code is ``scale * numerator / denominator * 2^-shift -
    offset``: a product with it is one with a whole number of ``bits + 1``
    bits, a shift to the right, and one factor for all.

    Attributes:
        scale (Tensor): float32 ``[K]``.
        numerators (Tensor): int32 ``[K, V]``, 0 for the code of zero.
        shifts (Tensor): int32 ``[K, V]``.
        denominator (int): Greatest numerator.
        offset (float): Is taken away last.
    """

    scale: Tensor
    numerators: Tensor
    shifts: Tensor
    denominator: int
    offset: float

    def take(self, rows: Tensor) -> 'ShiftEncoding':
        """See :class:`Encoding`."""
        taken = super().take(rows)
        assert isinstance(taken, ShiftEncoding)
        at = rows if len(self.table) > 1 else torch.zeros_like(rows)
        for name in ('scale', 'numerators', 'shifts'):
            object.__setattr__(taken, name, getattr(self, name)[at])
        return taken


@QUANTIZERS.register_module()
class AdaLogQuantizer(PowersQuantizer, Refines, FitsPoints):
    """``s 2^(-k q / 37)``, and zero; for post-softmax, post-GELU inputs.

    AdaLog (Wu et al., 2024): a whole q from 10 to 137 is the base, 37 being
    log2 and 18 or 19 nearly its root. With ``b`` the bits and
    ``D = 2^(b + 1) - 2``, the value of k is ``s 2^-T1 T2``, ``T1 =
    floor(k q / 37)``, ``T2 = round(D 2^(-(k q mod 37) / 37)) / D``: kernels
    multiply by whole numbers and shift. Codes change where k is halfway.

    A range sets s to its high end, and q to a default for the width;
    :meth:`fit_points` searches both, :meth:`coarse` and :meth:`refined` are
    for a pass that does.

    By default b bits hold ``2^b - 1`` powers and zero; see ``powers``.

    Args:
        bits (int): Bit-width, 2 to 8.
        shift (float): Is added before and taken away after: values down to
            ``-shift`` have a code. 0.16997124254703522 is that of a GELU.
            Defaults to 0.
        powers (int, optional): How many powers have a code. None is
            ``2**bits - 1``, which leaves one for zero; with ``2**bits``
            there is none. The authors' simulation at b bits has ``2**b``
            powers and zero: ``bits=b + 1, powers=2**b`` here, as no b bits
            hold them.
        fixed_scale (float, optional): The scale, whatever the range; 1 for
            a softmax in the paper. By default it is the high end of the
            range, plus ``shift``.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'``.

    Attributes:
        q (Tensor): float32 ``[K]`` or ``[L, K]``, whole.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    parameter_names = ('scale', 'q')
    q: Tensor

    @property
    def width(self) -> int:
        """Bits that number the powers."""
        return (self.powers - 1).bit_length()

    @property
    def denominator(self) -> int:
        """D, the greatest numerator."""
        return (1 << self.width + 1) - 2

    @property
    def default_q(self) -> int:
        """The q that spans 0.9 + 1.3 b octaves, as far as there is one.

        By the errors of softmax outputs: 43 for 2 bits, 25 for 3, 15 for 4.
        """
        octaves = 0.9 + 1.3 * self.width
        q = round(ROOT * octaves / ((1 << self.width) - 1))
        return min(max(q, Q_MIN), Q_MAX)

    def of_range(self, low: Tensor, high: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`StoredTableQuantizer.of_range`."""
        scale = self.scale_of(high)
        return scale, torch.full_like(scale, self.default_q)

    def integers(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """``D T2`` and ``T1`` of each power.

        Args:
            q (Tensor): Whole, any shape.

        Returns:
            tuple[Tensor, Tensor]: int64, powers behind the shape of ``q``.
        """
        k = torch.arange(self.powers, device=q.device)
        steps = k * q.to(torch.int64)[..., None]
        part = torch.exp2(-(steps % ROOT).to(torch.float64) / ROOT)
        numerators = torch.round(part * self.denominator)
        return numerators.to(torch.int64), steps // ROOT

    def relative(self, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`PowersQuantizer.relative`."""
        _, q = numbers
        numerators, shifts = self.integers(q)
        part = numerators.to(torch.float64) / self.denominator
        values = part * torch.exp2(-shifts.to(torch.float64))
        k = torch.arange(self.powers, dtype=torch.float64, device=q.device)
        halfway = (k + 0.5) * q[..., None].to(torch.float64)
        return values, torch.exp2(-halfway / ROOT)

    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> ShiftEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        plain = super().encoding(x, level)
        scale, q = self.numbers_of(level)
        # codes are numbered from the lowest value
        numerators, shifts = (t.flip(-1) for t in self.integers(q))
        if self.has_zero:
            numerators, shifts = (
                torch.nn.functional.pad(t, (1, 0))
                for t in (numerators, shifts)
            )
        return ShiftEncoding(
            plain.bits,
            plain.granularity,
            plain.table,
            plain.bounds,
            scale,
            numerators.to(torch.int32),
            shifts.to(torch.int32),
            self.denominator,
            self.shift,
        )

    def coarse(self, x: Tensor, count: int) -> ScalesAndSteps:
        """See :meth:`Refines.coarse`.

        Scales between the maximum and what a tenth of the values above 0
        exceeds;
        q in equal ratios.
        """
        x = (x + self.shift).clamp(min=0)
        high = x.amax(1, keepdim=True)
        if self.fixed_scale is not None:
            scales = torch.full_like(high, self.fixed_scale)
            between = torch.zeros_like(high)
        else:
            above = (0.1 * (x > 0).sum(1, keepdim=True)).long()
            low = x.sort(1, descending=True).values.gather(1, above)
            at = torch.linspace(0, 1, SCALES, device=x.device)
            scales = low + (high - low) * at
            between = (high - low) / (SCALES - 1)
        wanted = max(2, count // scales.shape[1])
        span = torch.tensor(Q_MAX / Q_MIN, device=x.device).log2()
        at = torch.linspace(0, 1, wanted, device=x.device)
        steps = (Q_MIN * torch.exp2(span * at)).round()
        shape = len(x), wanted, scales.shape[1]
        return ScalesAndSteps(
            _limited(scales)[:, None].expand(shape).flatten(1),
            steps[:, None].expand(shape).flatten(1),
            between[:, None].expand(shape).flatten(1),
            (span / (wanted - 1)).expand(shape).flatten(1),
        )

    def refined(self, kept: tuple[Tensor, ...], each: int) -> ScalesAndSteps:
        """See :meth:`Refines.refined`.

        The points around one fill the room between its neighbours evenly.
        """
        scale, q, *between = (k[..., None] for k in kept)
        j = torch.arange(each, device=q.device)
        to_scale, to_step = (
            ((j * spread + 0.5) % 1 - 0.5) * pitch
            for spread, pitch in zip(_SPREAD, between, strict=True)
        )
        moved = torch.where(to_scale == 0, scale, _limited(scale + to_scale))
        stepped = (q * torch.exp2(to_step)).round().clamp(Q_MIN, Q_MAX)
        nearer = [(b / each**0.5).expand_as(moved) for b in between]
        found = moved.expand_as(stepped), stepped, *nearer
        return ScalesAndSteps(*(t.flatten(1) for t in found))

    def candidates(
        self, low: Tensor, high: Tensor, fractions: Tensor
    ) -> ScalesAndSteps:
        """See :meth:`Searchable.candidates`.

        Scales for the shares, at the q in force; with a ``fixed_scale`` as
        many q's in its place.
        """
        scale = self.scale_of(high[:, None] * fractions)
        if self.fixed_scale is not None:
            q = torch.linspace(Q_MIN, Q_MAX, len(fractions)).to(scale)
            q = q.round().expand_as(scale)
        elif bool(self.initialized):
            q = self.q.flatten().to(scale)[:, None].expand_as(scale)
        else:
            q = torch.full_like(scale, self.default_q)
        return ScalesAndSteps(scale, q, *scale.new_zeros(2, *scale.shape))

    def fit_points(
        self, points: Tensor, shares: Tensor, p: float = 2.0, level: int = 0
    ) -> None:
        """See :meth:`FitsPoints.fit_points`: searches q, and s with it.

        What a row has stays where the search finds nothing better.
        """
        scale, q = (n.to(points)[:, None] for n in self.numbers_of(level))
        none = torch.zeros_like(q)
        old = ScalesAndSteps(scale, q, none, none)
        found = progressive_search(self, points, shares, p)
        found = better_of(self, points, shares, p, old, found)
        self.set_level(level, *(t[:, 0] for t in found[:2]))

    def parameter_bits(self, rows: int) -> int:
        """32 bits a scale that is not fixed, and 8 bits a q."""
        return super().parameter_bits(rows) - 24 * rows


def _limited(scale: Tensor) -> Tensor:
    return scale.clamp(MIN_SCALE, MAX_SCALE)
