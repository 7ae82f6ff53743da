# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""SubSetQ: weights take the best few of fifteen magnitudes."""

from typing import ClassVar

import torch
from torch import Tensor

from ...registry import QUANTIZERS
from ..capabilities import FitsTensor, LearnsStep, Searchable
from ..export_ops import exporting, sizes
from ..kernels import to_dtype
from ..table import TableQuantizer
from .codes import value_bounds, value_table
from .search import (
    default_subset,
    fit_rows,
    search_subset,
    universal_set,
)

# Every value times the least scale is a normal float32.
MIN_SCALE = 2.0**-100
MAX_SCALE = torch.finfo(torch.float32).max


@QUANTIZERS.register_module()
class SubsetQuantizer(TableQuantizer, LearnsStep, FitsTensor, Searchable):
    """Non-uniform weights: a sign and one of ``2**(bits - 1)`` magnitudes.

    The magnitudes are the subset of :func:`universal_set` that suits the
    layer best: of all subsets, each divided by its maximum and scaled by
    the alternating fit, the one of least ``|| |W| - |W_q| ||_2`` (SubSetQ:
    Oh et al., "Non-uniform step size quantization for accurate
    post-training quantization", ECCV 2022). One subset a layer; one scale
    a layer or, refitted by the same alternation, one a channel.

    Codes are numbered in the order of their values. If 0 is among the
    magnitudes, its two signs are one value and the top code is not used.

    Floats of any width are computed in float32 and cast back.

    Args:
        bits (int): Bit-width, 2 to 4.
        granularity (str): ``'tensor'`` or ``'channel'``.
        axis (int, optional): Output channel axis. Defaults to 0.
        role (str): ``'weight'``.

    Attributes:
        magnitudes (Tensor): float32 ``[2**(bits - 1)]``, ascending up to 1.
        scale (Tensor): float32 ``[K]``, the largest magnitude in units of
            x; empty before :meth:`fit` or :meth:`set_range`. A parameter if
            it is learned.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    symmetric = True
    scale_limits = (MIN_SCALE, MAX_SCALE)
    allowed_bits: ClassVar[tuple[int, ...]] = (2, 3, 4)
    magnitudes: Tensor
    scale: Tensor

    def __init__(
        self,
        bits: int = 4,
        granularity: str = 'channel',
        axis: int | None = None,
        role: str = 'weight',
    ) -> None:
        if type(bits) is not int or bits not in self.allowed_bits:
            raise ValueError(
                f'bits of a SubsetQuantizer must be 2, 3 or 4, got {bits!r}: '
                'use UniformQuantizer or LLAQuantizer for that layer'
            )
        if role != 'weight':
            raise ValueError(
                f"a SubsetQuantizer is for role 'weight', got {role!r}: "
                'use UniformQuantizer for activations'
            )
        if granularity not in ('tensor', 'channel'):
            raise ValueError(
                'granularity of a SubsetQuantizer must be tensor or channel'
                f', got {granularity!r}'
            )
        super().__init__(bits, granularity, axis, role=role)
        self.register_buffer('magnitudes', default_subset(bits))
        self.register_buffer('scale', torch.empty(0))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See :meth:`BaseQuantizer.set_range`.

        Takes :func:`default_subset`, and the range's end as the scale; only
        :meth:`fit` searches.
        """
        self.check_range(low, high)
        self._set(default_subset(self.bits), _scale_of(low, high).flatten())

    @torch.no_grad()
    def fit(self, x: Tensor) -> bool:
        """Searches the subset and fits the scales.

        Args:
            x (Tensor): A weight of any shape that has the channel axis.

        Returns:
            bool: True.

        Raises:
            ValueError: If ``x`` holds NaN or Inf, as a float32.
        """
        rows = self.finite_rows(x)
        if not bool(rows.any()):
            nothing = torch.zeros(max(1, rows.shape[0]))
            self.set_range(nothing, nothing)
            return True
        magnitudes, scale = search_subset(rows, self.bits)
        if self.granularity.kind == 'tensor':
            scales = torch.tensor([scale], dtype=torch.float64)
        else:
            scales = fit_rows(rows, magnitudes, scale)
        self._set(magnitudes, scales)
        return True

    def _set(self, magnitudes: Tensor, scale: Tensor) -> None:
        scale = scale.clamp(MIN_SCALE, MAX_SCALE)
        self.magnitudes = magnitudes.to(self.magnitudes)
        self.scale.data = scale.to(self.scale)
        self.initialized.fill_(True)

    def fitted_scale(self) -> Tensor:
        """The scale, within its limits.

        Raises:
            CalibrationError: If there is none yet.
        """
        if 0 in sizes(self.scale):
            raise self.no_range()
        if not exporting():  # a graph takes the scale as it stands
            self.keep_scale()
        return self.scale

    def num_rows(self) -> int:
        """See :meth:`BaseQuantizer.num_rows`."""
        return self.scale.numel()

    def codebook(self) -> Tensor:
        """See :meth:`TableQuantizer.codebook`."""
        return value_table(self.magnitudes) * self.fitted_scale()[:, None]

    def bounds(self, table: Tensor) -> Tensor:
        """See :meth:`TableQuantizer.bounds`."""
        return value_bounds(self.fitted_scale().detach(), self.magnitudes)

    def values(self, codes: Tensor) -> Tensor:
        """See :meth:`SoftRounding.values`."""
        scale = self.granularity.expand(self.fitted_scale(), codes.shape)
        return value_table(self.magnitudes)[codes.long()] * scale

    def lower_codes(self, x: Tensor) -> Tensor:
        """See :meth:`SoftRounding.lower_codes`."""
        codes = self.encode(x)
        above = self.decode(codes) > x.detach().to(torch.float32)
        codes -= above.to(torch.int32)
        last = 2 * len(self.magnitudes) - 1 - int(self.magnitudes[0] == 0)
        return codes.clamp_(0, last - 1)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """Quantizes and dequantizes.

        Args:
            x (Tensor): Any shape, strides and float type.
            level (int): Not used: weights have no pyramid levels.

        Returns:
            Tensor: Like ``x``; NaN stays NaN. Differentiable: straight
            through up to the outermost values and 0 beyond, and for a
            learned scale the gradient of the values, codes held fixed.

        Raises:
            CalibrationError: If there is no scale yet.
        """
        if exporting():
            return self.exported(x)
        top = self.granularity.expand(self.fitted_scale().detach(), x.shape)
        out = self.values(self.encode(x))
        top = top * self.magnitudes[-1]
        inside = x.to(torch.float32).clamp(-top, top)
        # adds 0 and a gradient
        return to_dtype(out + (inside - inside.detach()), x.dtype)

    def parameter_bits(self, rows: int) -> int:
        """32 bits a scale, and a mask over the universal set."""
        return rows * 32 + len(universal_set())

    def trial(self, x: Tensor, candidates: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`Searchable.trial`; ranges as :meth:`set_range`."""
        low, high = candidates
        subset = default_subset(self.bits).to(x.device)
        scale = _scale_of(low, high)
        x = x[:, None].expand(*scale.shape, -1).contiguous()
        codes = torch.searchsorted(value_bounds(scale, subset), x, right=True)
        return value_table(subset)[codes] * scale[..., None]


def _scale_of(low: Tensor, high: Tensor) -> Tensor:
    """float32 scales that reach the farther end of each range."""
    end = torch.maximum(-low, high).to(torch.float32)
    return end.clamp(MIN_SCALE, MAX_SCALE)
