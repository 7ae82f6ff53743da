# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The uniform quantizer, affine or symmetric."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..registry import QUANTIZERS
from .base import BaseQuantizer
from .capabilities import (
    HasRange,
    LearnsEnds,
    LearnsStep,
    Rescales,
    SoftRounding,
)
from .encoding import UniformEncoding
from .export_ops import exporting, fields, quantize_dequantize_op, sizes
from .kernels import quantize_dequantize, ste_round, to_dtype
from .uniform_search import SearchesSteps

MIN_SCALE = 1e-8
# 1 / scale has to be a normal float32.
MAX_SCALE = 2.0**126


@QUANTIZERS.register_module()
class UniformQuantizer(
    BaseQuantizer,
    LearnsStep,
    LearnsEnds,
    SoftRounding,
    HasRange,
    Rescales,
    SearchesSteps,
):
    """Equal steps between two ends, zero always among the values.

    Affine: with ``n = 2^b - 1``, ``s = (max - min) / n`` over a range
    widened to hold zero, ``z = clip(-round(min / s), 0, n)``, codes 0..n.
    Symmetric: ``s = max|x| / (n / 2)``, ``z = 0``, codes -2^(b-1) ..
    2^(b-1) - 1 (the form of QDrop and MQBench). Steps are at least 1e-8.
    A subclass may have other codes: it sets ``qmin`` and ``qmax``, at most
    2^b codes apart, after its ``__init__``; then ``n = qmax - qmin``, and an
    affine z is ``qmin`` higher.

    Floats of any width are computed in float32 and cast back.

    Args:
        bits (int): Bit-width, 2 to 8.
        symmetric (bool): Whether the grid is centred on zero.
        granularity (str): ``'tensor'``, ``'channel'`` or ``'group'``.
        axis (int, optional): Channel axis. Defaults to 1 for activations
            and 0 for weights.
        group_size (int, optional): Channels in a group, for ``'group'``.
        per_level (bool): Whether pyramid levels may have their own ranges.
        role (str): ``'act'`` or ``'weight'``.

    Attributes:
        scale (Tensor): float32 ``[K]`` or ``[L, K]``, in units of x; empty
            before :meth:`set_range`. A parameter if the step is learned.
        zero_point (Tensor): int32, shaped like ``scale``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    scale_limits = (MIN_SCALE, MAX_SCALE)
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int = 8,
        symmetric: bool = False,
        granularity: str = 'tensor',
        axis: int | None = None,
        group_size: int | None = None,
        per_level: bool = False,
        role: str = 'act',
    ) -> None:
        super().__init__(bits, granularity, axis, group_size, per_level, role)
        self.symmetric = bool(symmetric)
        self.qmin: int = -(2 ** (bits - 1)) if symmetric else 0
        self.qmax: int = self.qmin + 2**bits - 1
        self.register_buffer('scale', torch.empty(0))
        self.register_buffer('zero_point', torch.empty(0, dtype=torch.int32))

    def grid(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point that cover a range.

        Args:
            low (Tensor): Any shape.
            high (Tensor): Same shape.

        Returns:
            tuple[Tensor, Tensor]: float32 scale and int32 zero point.
        """
        low = low.to(torch.float64).clamp(max=0.0)
        high = high.to(torch.float64).clamp(min=0.0)
        steps = self.qmax - self.qmin
        if self.symmetric:
            scale = torch.maximum(-low, high) / (steps / 2)
            zero = torch.zeros_like(scale)
        else:
            scale = (high - low) / steps
            scale = scale.clamp(MIN_SCALE, MAX_SCALE)
            below = (-torch.round(low / scale)).clamp(0, steps)
            zero = below + self.qmin
        farthest = torch.maximum(zero - self.qmin, self.qmax - zero)
        # the outermost code times the scale stays within float32
        top = torch.finfo(torch.float32).max / farthest * (1 - 2.0**-22)
        scale = scale.clamp(MIN_SCALE, MAX_SCALE).minimum(top)
        return scale.to(torch.float32), zero.to(torch.int32)

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See :meth:`BaseQuantizer.set_range`."""
        self.check_range(low, high)
        scale, zero = self.grid(low, high)
        self.scale.data = scale.to(self.scale.device)
        self.zero_point = zero.to(self.zero_point.device)
        self.initialized.fill_(True)

    def num_levels(self) -> int:
        """Number of pyramid levels with a range of their own."""
        return self.scale.shape[0] if self.scale.dim() == 2 else 1

    def parameters_of(self, level: int = 0) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a level, ``[K]`` each.

        Args:
            level (int): Pyramid level; ignored where all levels share one
                range.

        Raises:
            CalibrationError: If no range was set.
            IndexError: If there is no such level.
        """
        scale, zero = self._stored(level)
        if scale.dim() == 2:
            scale, zero = scale.select(0, 0), zero.select(0, 0)
        return scale, zero

    def _stored(self, level: int) -> tuple[Tensor, Tensor]:
        """:meth:`parameters_of`, ``[1, K]`` where there is one level."""
        # a module's own way to its tensors is slow, and a GPU waits for it
        held: Mapping[str, Any] = self._buffers
        scale, zero = held.get('scale'), held['zero_point']
        if scale is None:  # it is learned
            if not exporting():  # a graph takes the scale as it stands
                self.keep_scale()
            scale = self.scale
        shape = sizes(scale)
        if 0 in shape:
            raise self.no_range()
        if len(shape) == 2 and shape[0] > 1:
            if not 0 <= level < shape[0]:
                raise IndexError(
                    f'level {level} of a quantizer that has '
                    f'ranges for {shape[0]} levels'
                )
            scale, zero = scale.select(0, level), zero.select(0, level)
        return scale, zero

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return self.scale.numel()

    @torch.no_grad()
    def encoding(
        self, x: Tensor | None = None, level: int = 0
    ) -> UniformEncoding:
        """See :meth:`BaseQuantizer.encoding`; ``x`` is not looked at."""
        scale, zero = self._grid_now(level)
        return UniformEncoding(
            self.bits,
            self.granularity,
            scale.clone(),
            zero.clone(),
            self.qmin,
            self.qmax,
        )

    def _grid_now(self, level: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, of the ends where those are learned."""
        if 'low' in self._parameters:
            scale, zero = self._grid_of_ends(level)
            return scale, zero.to(torch.int32)
        return self.parameters_of(level)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any shape, strides and float type.
            level (int): Pyramid level.

        Returns:
            Tensor: Like ``x``. Differentiable: straight through within the
            clip range, and LSQ for a learned step.

        Raises:
            CalibrationError: If no range was set.
        """
        if exporting():
            scale, zero = self._grid_now(level)
            y: Tensor = quantize_dequantize_op(
                x,
                scale,
                zero,
                *fields(self.granularity),
                self.qmin,
                self.qmax,
            )
            return y
        if 'low' in self._parameters:
            return to_dtype(self._by_ends(x.to(torch.float32), level), x.dtype)
        scale, zero = self._stored(level)
        return quantize_dequantize(
            x, scale, zero, self.granularity, self.qmin, self.qmax
        )

    def lower_codes(self, x: Tensor) -> Tensor:
        """See :meth:`SoftRounding.lower_codes`."""
        scale, zero = self.parameters_of()
        step = self.granularity.expand(scale.detach(), x.shape)
        codes = torch.floor(x.detach().to(torch.float32) / step)
        codes += self.granularity.expand(zero, x.shape)
        return codes.clamp_(self.qmin, self.qmax - 1).to(torch.int32)

    def values(self, codes: Tensor) -> Tensor:
        """See :meth:`SoftRounding.values`."""
        scale, zero = self.parameters_of()
        steps = codes - self.granularity.expand(zero, codes.shape)
        return steps * self.granularity.expand(scale, codes.shape)

    def range(self) -> tuple[Tensor, Tensor]:
        """See :meth:`HasRange.range`."""
        scale, zero = self.scale.detach(), self.zero_point
        width = (self.qmax - self.qmin) * scale
        low = -width / 2 if self.symmetric else (self.qmin - zero) * scale
        return low, low + width

    @torch.no_grad()
    def rescale(self, factors: Tensor) -> None:
        """See :meth:`Rescales.rescale`."""
        scale = self.scale.detach() * factors.to(self.scale)
        self.scale.data = scale.clamp(*self.scale_limits)

    def learn_ends(self, enabled: bool = True) -> None:
        """Makes both ends of the range parameters, ``low`` and ``high``.

        Gradients pass the rounding of codes and of the zero point straight
        through (AdaQuant, 2021). Ending it fixes the grid of the ends.
        """
        if enabled == ('low' in self._parameters):
            return
        if enabled:
            self.low, self.high = map(nn.Parameter, self.range())
        else:
            low = self.low.detach().clamp(max=0)
            high = self.high.detach().clamp(min=0)
            del self.low, self.high
            if self.symmetric:
                high = (high - low) / 2
                low = -high
            self.set_range(low, high)

    def _grid_of_ends(self, level: int) -> tuple[Tensor, Tensor]:
        low, high = self.low.clamp(max=0), self.high.clamp(min=0)
        if low.dim() == 2:
            at = level if low.shape[0] > 1 else 0
            low, high = low[at], high[at]
        steps = self.qmax - self.qmin
        scale = ((high - low) / steps).clamp(MIN_SCALE, MAX_SCALE)
        if self.symmetric:
            return scale, torch.zeros_like(scale)
        return scale, ste_round(-low / scale).clamp(0, steps) + self.qmin

    def _by_ends(self, x: Tensor, level: int) -> Tensor:
        if x.numel() == 0:
            return x.clone()
        s, z = (
            self.granularity.expand(p, x.shape)
            for p in self._grid_of_ends(level)
        )
        codes = (ste_round(x / s) + z).clamp(self.qmin, self.qmax)
        return (codes - z) * s

    def parameter_bits(self, rows: int) -> int:
        """32 bits a scale and, if affine, ``bits`` a zero point."""
        return rows * (32 + (0 if self.symmetric else self.bits))
