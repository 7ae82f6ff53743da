# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channel scales that differ by powers of two."""

import torch
from torch import Tensor

from ..checks import whole
from ..registry import QUANTIZERS
from .base import BaseQuantizer
from .capabilities import FitsPoints
from .encoding import UniformEncoding
from .export_ops import exporting, fields, quantize_dequantize_op
from .kernels import quantize_dequantize
from .uniform import UniformQuantizer

#: shares of the range that a fit tries
FRACTIONS = 16


@QUANTIZERS.register_module()
class PowerOfTwoQuantizer(BaseQuantizer, FitsPoints):
    """One scale and zero point, and an exponent for each channel.

    The power-of-two factor of FQ-ViT (Lin et al., 2022), for inputs of
    layer norms: channel c has the scale ``S 2^a_c``, ``a_c`` from 0 to K,
    so that integer codes of all channels add up after shifts. The largest
    scale, ``S 2^K``, covers the range of all channels; a range gives each
    channel the least exponent that covers it, :meth:`fit_points` the one of
    least error.

    Args:
        bits (int): Bit-width, 2 to 8.
        max_exponent (int): K. Defaults to 3.
        granularity (str): ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'``.

    Attributes:
        scale (Tensor): float32 ``[K]`` or ``[L, K]``, that of each channel.
        zero_point (Tensor): int32, shaped like ``scale``, equal within a
            level.
        exponents (Tensor): int32, shaped like ``scale``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    scale: Tensor
    zero_point: Tensor
    exponents: Tensor

    def __init__(
        self,
        bits: int = 8,
        max_exponent: int = 3,
        granularity: str = 'channel',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        if role != 'act':
            raise ValueError(
                f"a PowerOfTwoQuantizer is for role 'act', got {role!r}: use "
                'UniformQuantizer for weights'
            )
        super().__init__(bits, granularity, axis, group_size, per_level)
        if granularity == 'tensor':
            raise ValueError(
                "granularity of a PowerOfTwoQuantizer must be 'channel' or "
                "'group': a whole tensor has no exponents; use "
                'UniformQuantizer'
            )
        self.max_exponent = whole('max_exponent', max_exponent, 1)
        if max_exponent > 15:
            raise ValueError(
                f'max_exponent must be from 1 to 15, got {max_exponent}'
            )
        self.qmax = 2**bits - 1
        self.register_buffer('scale', torch.empty(0))
        for name in ('zero_point', 'exponents'):
            self.register_buffer(name, torch.empty(0, dtype=torch.int32))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See :meth:`BaseQuantizer.set_range`.

        Each channel gets the least exponent that covers its own range.
        """
        self.check_range(low, high)
        scale, zero = self._shared(low, high, 1.0)
        exponents = torch.zeros_like(low, dtype=torch.int32)
        for a in range(self.max_exponent):
            step = scale * 2**a
            # a part of a step more is clipped by less than half of it
            top, end = (self.qmax - zero + 0.5) * step, (zero + 0.5) * step
            exponents += (high > top) | (-low > end)
        device = self.scale.device
        self.scale = (scale * 2**exponents).to(device)
        self.zero_point = zero.expand_as(low).contiguous().to(device)
        self.exponents = exponents.to(device)
        self.initialized.fill_(True)

    def _shared(
        self, low: Tensor, high: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """Least scale and zero point of all channels, ``[..., 1]``.

        Args:
            low (Tensor): ``[..., K]``.
            high (Tensor): Same shape.
            share (float): Of the range that the largest scale covers.
        """
        ends = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
        scale, zero = UniformQuantizer(self.bits).grid(
            *(end * share for end in ends)
        )
        return scale / 2**self.max_exponent, zero

    @torch.no_grad()
    def fit_points(
        self, points: Tensor, shares: Tensor, p: float = 2.0, level: int = 0
    ) -> None:
        """See :meth:`FitsPoints.fit_points`.

        Of 16 shares of the range for the largest scale, the one with which
        all channels together err least, each with its best exponent.
        """
        at = self._level(level)
        known = torch.where(shares > 0, points, 0)
        ends = known.amin(1), known.amax(1)
        least, best = None, None
        for i in range(FRACTIONS, 0, -1):
            scale, zero = self._shared(*ends, (i / FRACTIONS) ** 2)
            error = torch.stack(
                [
                    self._error(points, shares, scale * 2**a, zero, p)
                    for a in range(self.max_exponent + 1)
                ]
            )
            found, exponents = error.min(0)
            if least is None or found.sum() < least:
                least, best = found.sum(), (scale, zero, exponents)
        assert best is not None
        scale, zero, exponents = best
        self.scale[at] = (scale * 2**exponents).to(self.scale)
        self.zero_point[at] = zero.to(self.zero_point)
        self.exponents[at] = exponents.to(self.exponents)

    def _error(
        self,
        x: Tensor,
        shares: Tensor,
        scale: Tensor,
        zero: Tensor,
        p: float,
    ) -> Tensor:
        codes = (x / scale).round_().add_(zero).clamp_(0, self.qmax)
        off = (codes - zero) * scale - x
        return (off.abs_() ** p * shares).sum(1)

    def _level(self, level: int) -> tuple[int, ...]:
        """Index of a level's parameters.

        Raises:
            CalibrationError: If no range was set.
            IndexError: If there is no such level.
        """
        if 0 in self.scale.shape:
            raise self.no_range()
        if self.scale.dim() == 1:
            return ()
        levels = self.scale.shape[0]
        if levels > 1 and not 0 <= level < levels:
            raise IndexError(
                f'level {level} of a quantizer that has ranges for '
                f'{levels} levels'
            )
        return (level if levels > 1 else 0,)

    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> UniformEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        at = self._level(level)
        return UniformEncoding(
            self.bits,
            self.granularity,
            self.scale[at].clone(),
            self.zero_point[at].clone(),
            0,
            self.qmax,
        )

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any shape, strides and float type.
            level (int): Pyramid level.

        Returns:
            Tensor: Like ``x``. Its gradient passes straight through within
            the clip range.

        Raises:
            CalibrationError: If no range was set.
        """
        at = self._level(level)
        scale, zero = self.scale[at], self.zero_point[at]
        if exporting():
            y: Tensor = quantize_dequantize_op(
                x, scale, zero, *fields(self.granularity), 0, self.qmax
            )
            return y
        return quantize_dequantize(
            x, scale, zero, self.granularity, 0, self.qmax
        )

    def num_levels(self) -> int:
        """Number of pyramid levels with a range of their own."""
        return self.scale.shape[0] if self.scale.dim() == 2 else 1

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return self.scale.numel()

    def parameter_bits(self, rows: int) -> int:
        """32 bits a scale, ``bits`` a zero point; exponents of a few bits."""
        shared = (32 + self.bits) * self.num_levels()
        return shared + self.max_exponent.bit_length() * rows

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f'{super().extra_repr()}, max_exponent={self.max_exponent}'
