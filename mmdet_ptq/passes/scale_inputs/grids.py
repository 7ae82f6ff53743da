# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a grid for each input channel would bring, on rows of inputs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...layers import QuantLayer
from ...observers import search_weight_range
from ...observers.search import GridError
from ...quantizers import BaseQuantizer, FitsPoints, UniformQuantizer
from ...surgery import scaled_inputs
from ..equalize.trial import on_own_grid

#: samples of a channel, other than 0, at which its own range counts half
HALF = 16

#: elements and rows that ranges are searched on, and the resolution: here
#: grids are compared, the ranges that stay are found later
SAMPLE, ROWS, STEPS = 2**17, 1024, 20
#: elements to which what a range leaves open is fitted
FITTED = 2**10

Levels = list[Tensor]
"""Rows ``[T, C]`` of each pyramid level"""


@dataclass(frozen=True)
class Channels:
    """``x' = x / factors - shift``.

    Attributes:
        factors (Tensor): ``[C]``, above 0.
        shift (Tensor, optional): ``[C]``.
    """

    factors: Tensor
    shift: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Rows ``[T, C]`` as the layer would quantize them."""
        y = x / self.factors
        return y if self.shift is None else y - self.shift


@dataclass(frozen=True)
class ChannelRanges:
    """Where the values of each channel of an input lie.

    Attributes:
        low (Tensor): ``[C]``.
        high (Tensor): ``[C]``, above ``low``.
        width (Tensor): ``[C]``: of channels with few samples, nearer to the
            width of the whole tensor.
    """

    low: Tensor
    high: Tensor
    width: Tensor

    def scaling(self, strength: float, shifted: bool) -> Channels:
        """Factors that bring widths together.

        Args:
            strength (float): 0 leaves them, 1 makes them equal.
            shifted (bool): Whether all ranges begin at 0 then.
        """
        factors = (self.width / self.width.median()) ** strength
        return Channels(factors, self.low / factors if shifted else None)

    def one_grid(self, bits: int, shifted: bool) -> Channels:
        """Brings the grids of all channels to their mean (RepQ-ViT).

        With scales s and zero points z of the channels, and their means s~
        and z~, ``r = s / s~`` and ``b = (z~ - z) s~`` (Li et al., 2023).
        The mean zero point is rounded and is a code, so that 0 is among the
        values.

        Args:
            bits (int): Width of the grid.
            shifted (bool): Whether there are zero points; otherwise grids
                are symmetric.
        """
        codes = 2**bits - 1
        width = self.width.double()
        if not shifted:
            width = 2 * torch.maximum(-self.low, self.high).double()
        floor = 1e-6 * width.max()
        scale = width.maximum(floor).clamp(min=1e-12) / codes
        mean = scale.mean()
        if not shifted:
            return Channels(scale / mean)
        zero = (-self.low.double() / scale).round()
        middle = zero.mean().round().clamp(0, codes)
        return Channels(scale / mean, (middle - zero) * mean)


def channel_ranges(
    levels: Levels, bits: int, p: float, shifted: bool
) -> ChannelRanges:
    """Ranges of least error of each channel.

    Args:
        levels (list[Tensor]): Rows of all pyramid levels.
        bits (int): Width of the grid.
        p (float): Exponent of the error.
        shifted (bool): Whether ranges need not hold 0.

    Returns:
        ChannelRanges: Of all levels together.
    """
    rows = torch.cat(levels)
    middle = rows.mean(0) if shifted else torch.zeros_like(rows[0])
    grid = UniformQuantizer(bits, granularity='channel', axis=1)
    few = rows[:: -(-len(rows) // ROWS)]
    low, high = search_weight_range(few - middle, grid, p, STEPS)
    tensor = (rows.amax() - rows.amin()).clamp(min=1e-12)
    seen = (rows != 0).sum(0)
    trust = seen / (seen + HALF)
    own = (high - low).clamp(min=1e-6 * float(tensor))
    width = own.log().lerp(tensor.log(), 1 - trust).exp()
    return ChannelRanges(low + middle, high + middle, width)


def percentile_ranges(
    levels: Levels, bits: int, percentiles: Sequence[float], shifted: bool
) -> ChannelRanges:
    """Ranges between two quantiles of each channel (RepQ-ViT's rule).

    Args:
        levels (list[Tensor]): Rows of all pyramid levels.
        bits (int): Width of the grid.
        percentiles (Sequence[float]): Shares q; the range from the quantile
            1 - q to q is tried, and that of least squared error stays.
        shifted (bool): Whether ranges need not hold 0.

    Returns:
        ChannelRanges: Of all levels together.
    """
    order = torch.cat(levels).sort(0).values.mT  # [C, T]
    shares = order.new_tensor(percentiles, dtype=torch.float64)
    low, high = _quantiles(order, 1 - shares), _quantiles(order, shares)
    # a grid holds 0: each candidate is laid so that its range does
    middle = (low + high) / 2 if shifted else torch.zeros_like(low)
    errors = torch.stack(
        [
            GridError(
                UniformQuantizer(bits, granularity='channel', axis=1),
                order - at,
                None,
                2.0,
            )(low[:, i : i + 1] - at, high[:, i : i + 1] - at)[:, 0]
            for i, at in enumerate(middle.mT[..., None])
        ],
        1,
    )
    best = errors.argmin(1, keepdim=True)
    low, high = (end.gather(1, best)[:, 0] for end in (low, high))
    if not shifted:
        low, high = low.clamp(max=0), high.clamp(min=0)
    return ChannelRanges(low, high, high - low)


def _quantiles(order: Tensor, shares: Tensor) -> Tensor:
    """Quantiles ``[C, Q]`` of sorted rows ``[C, T]``, interpolated."""
    place = shares * (order.shape[1] - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=order.shape[1] - 1)
    part = (place - below).to(order)
    return order[:, below].lerp(order[:, above], part)


def output_error(
    layers: list[QuantLayer],
    act: BaseQuantizer,
    fit: Levels,
    held: Levels,
    scaling: Channels | None,
    p: float,
) -> float:
    """Squared error of the layers' outputs on rows held out.

    Errors at the taps of a kernel are taken to be independent::

        sum_k tr(W'_k E[e eᵀ] W'_kᵀ) + tr(dW'_k E[q qᵀ] dW'_kᵀ)

    with the error e of the input, its quantized value q, and the error dW'
    of the quantized weight.

    Args:
        layers (list[QuantLayer]): That read the tensor.
        act (BaseQuantizer): Of the tensor, one grid for all of it.
        fit (list[Tensor]): Rows that its range is made for.
        held (list[Tensor]): Rows that it is judged on.
        scaling (Channels, optional): Of the channels.
        p (float): Exponent of the range.

    Returns:
        float: Sum over layers, mean over rows, sum over pyramid levels.
    """
    errors, powers = [], []
    for ours, theirs in zip(fit, held, strict=True):
        grid = copy.deepcopy(act)
        shown = ours if scaling is None else scaling(ours)
        few = shown.flatten()[:: -(-shown.numel() // SAMPLE)]
        grid.set_range(*search_weight_range(few, grid, p, STEPS))
        if isinstance(grid, FitsPoints):
            some = few[None, :: -(-len(few) // FITTED)]
            grid.fit_points(some, torch.ones_like(some), p)
        x = theirs if scaling is None else scaling(theirs)
        q = grid(x)
        errors.append(x - q)
        powers.append(q)
    total = 0.0
    for layer in layers:
        weight = layer.weight.detach().float()
        if scaling is not None:
            weight = scaled_inputs(layer, scaling.factors).to(weight)
        rounded = weight
        if layer.weight_quantizer is not None:
            rounded = on_own_grid(layer.weight_quantizer, weight, STEPS)
        for part, inputs in ((weight, errors), (weight - rounded, powers)):
            taps = _columns(layer, part).flatten(1).T
            total += sum(_energy(rows, taps) for rows in inputs)
    return total


def _energy(rows: Tensor, taps: Tensor) -> float:
    """Sum of squares of what taps make of rows, the mean over rows.

    Args:
        rows (Tensor): ``[T, C]``.
        taps (Tensor): ``[M, C]``.
    """
    (count, channels), many = rows.shape, len(taps)
    # the product itself, or second moments of the rows: what is cheaper
    if count * many < channels * (count + many):
        found = (rows @ taps.T).square().sum()
    else:
        found = ((taps @ (rows.T @ rows)) * taps).sum()
    return float(found) / count


def _columns(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight as ``[C, O, taps]``."""
    if not isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    return weight.reshape(*weight.shape[:2], -1)
