# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantize-dequantize of rows of any granularity, and its gradients."""

from typing import Any

import torch
from torch import Tensor

from .cuda import bits_of, fused, usable
from .fake_quantize import broadcast_grid, fake_quantize
from .granularity import Granularity


def ste_round(x: Tensor) -> Tensor:
    """Rounds half to even; the gradient passes unchanged."""
    return x + (x.round() - x).detach()


class _StraightThrough(torch.autograd.Function):
    """The second tensor, with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """``y`` bit for bit; its gradient goes to ``x`` unchanged.

    Args:
        x (Tensor): What was quantized.
        y (Tensor): What became of it, of its shape and dtype.

    Returns:
        Tensor: ``y``, part of the graph of ``x`` where that has one.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return y
    found: Tensor = _StraightThrough.apply(x, y)  # type: ignore[no-untyped-call]
    return found


class UniformFunction(torch.autograd.Function):
    """:func:`fake_quantize` with gradients for x and for a learned scale.

    The input's gradient is 1 where the code is not clipped and 0 elsewhere.
    With ``S = clip(round(x/s) + z) - z``, the scale's is the sum over its
    elements of ``S - x/s`` where not clipped and ``S`` elsewhere, times
    ``1 / sqrt(sharing * qmax)`` (LSQ as in QDrop; the zero point is fixed);
    ``sharing`` is how many elements share a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        axis: int | None,
        qmin: int,
        qmax: int,
        sharing: int,
    ) -> Tensor:
        """See :func:`fake_quantize`."""
        ctx.save_for_backward(x, scale, zero_point)
        ctx.grid = axis, qmin, qmax, sharing
        return fake_quantize(x, scale, zero_point, axis, qmin, qmax)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and scale; the other inputs have none."""
        x, scale, zero_point = ctx.saved_tensors
        axis, qmin, qmax, sharing = ctx.grid
        s, z = broadcast_grid(scale, zero_point, axis, x)
        wanted = ctx.needs_input_grad[:2]
        fast = usable(x, 'input_gradient') and usable(x, 'scale_gradient')
        slopes = _fused_slopes if fast else _slopes
        grad_x, slope = slopes(grad, x, s, z, qmin, qmax, *wanted)
        grad_scale = None
        if slope is not None:
            keep = [i for i in range(x.dim()) if i != axis]
            grad_scale = slope.sum(keep) if keep else slope
            grad_scale = grad_scale.reshape(scale.shape)
            # a grid of negative values alone has no highest step
            top = qmax if qmax > 0 else -qmin
            grad_scale = grad_scale * (sharing * top) ** -0.5
        return grad_x, grad_scale, None, None, None, None, None


def _slopes(
    grad: Tensor,
    x: Tensor,
    s: Tensor,
    z: Tensor,
    qmin: int,
    qmax: int,
    of_x: bool,
    of_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x, and of the scale before they are summed."""
    ratio = x / s
    code = ratio.round() + z
    inside = (code >= qmin) & (code <= qmax)
    grad_x = grad * inside if of_x else None
    if not of_scale:
        return grad_x, None
    slope = code.clamp_(qmin, qmax).sub_(z)
    slope -= torch.where(inside, ratio, 0.0)
    slope *= grad
    return grad_x, slope


def _fused_slopes(
    grad: Tensor,
    x: Tensor,
    s: Tensor,
    z: Tensor,
    qmin: int,
    qmax: int,
    of_x: bool,
    of_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """:func:`_slopes` in one kernel each."""
    given = qmin, qmax, grad, x, s, bits_of(z)
    return (
        fused('input_gradient', *given) if of_x else None,
        fused('scale_gradient', *given) if of_scale else None,
    )


def quantize_dequantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    granularity: Granularity,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Quantizes and dequantizes rows of any granularity.

    Args:
        x (Tensor): Any shape, strides and float type.
        scale (Tensor): float32 ``[K]`` or ``[1, K]``.
        zero_point (Tensor): int32, shaped like ``scale``.
        granularity (Granularity): Gives the K rows of ``x``.
        qmin (int): Lowest code.
        qmax (int): Highest code.

    Returns:
        Tensor: Like ``x``, a new tensor; with the gradients of
        :class:`UniformFunction` where one is needed.

    Raises:
        ValueError: If the rows do not fit the shape of ``x``.
    """
    if x.numel() == 0:
        return x.clone()
    rows = granularity.num_rows(x.shape)
    if granularity.kind != 'tensor' and scale.numel() != rows:
        raise ValueError(
            f'{scale.numel()} scales do not fit a tensor'
            f' of shape {tuple(x.shape)}: it needs {rows}'
        )
    learns = torch.is_grad_enabled() and (
        x.requires_grad or scale.requires_grad
    )
    y = x if x.dtype == torch.float32 else x.to(torch.float32)
    y, axis, scale, zero_point = _sliced(
        y, scale, zero_point, granularity, rows
    )
    grid = scale, zero_point, axis, qmin, qmax
    if learns:
        sharing = x.numel() // rows
        y = UniformFunction.apply(y, *grid, sharing)  # type: ignore[no-untyped-call]
    else:
        y = fake_quantize(y, *grid)
    if granularity.within or granularity.kind == 'row':
        y = granularity.unrows(y, x.shape)
    elif axis is not None and y.dim() > x.dim():
        y = y.flatten(axis, axis + 1)
    return to_dtype(y, x.dtype)


def _sliced(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    granularity: Granularity,
    rows: int,
) -> tuple[Tensor, int | None, Tensor, Tensor]:
    """A view in which each scale is that of a slice.

    Returns:
        tuple: The view, the axis of its slices (None: one scale for all),
        scales and zero points along it.
    """
    if granularity.kind == 'tensor':
        return x, None, scale, zero_point
    if granularity.within or granularity.kind == 'row':
        return granularity.rows(x), 0, scale, zero_point
    axis, size = granularity.channel_axis(x.shape), granularity.group_size
    if size is None or size == 1:
        return x, axis, scale, zero_point
    if not x.is_cpu:
        return x.unflatten(axis, (rows, size)), axis, scale, zero_point
    # a CPU is slow where few elements in a row share a scale
    return (
        x,
        axis,
        scale.repeat_interleave(size),
        zero_point.repeat_interleave(size),
    )


def to_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Casts float32, saturating: the top code of a half tensor is finite."""
    if x.dtype == dtype:
        return x
    if dtype in (torch.float16, torch.bfloat16):
        limit = torch.finfo(dtype).max
        return x.clamp(-limit, limit).to(dtype)
    return x.to(dtype)
