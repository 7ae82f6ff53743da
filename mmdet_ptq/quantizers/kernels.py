# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Fast quantize-dequantize with the arithmetic of ONNX.

All functions compute, in float32,
``(clamp(round(x / s) + z, qmin, qmax) - z) * s``, round half to even: what
ONNX's QuantizeLinear and DequantizeLinear compute, bit for bit. Torch's fused
kernels multiply by ``1 / s`` instead, which moves ties to the next code.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .cuda import bits_of, fused, usable
from .granularity import Granularity

# Elements worked on at once: 512 KiB of float32 stay in a core's L2 cache
# over the six steps. This makes plain torch ops about ten times faster on a
# CPU than the fused kernels, which are scalar code and also write a mask.
BLOCK = 1 << 17

Block = tuple[slice, slice, slice]


def _blocks(a: int, c: int, m: int) -> Iterator[Block]:
    """Cuts ``[a, c, m]`` into boxes of at most BLOCK elements."""
    step_m = min(m, BLOCK)
    step_c = max(1, min(c, BLOCK // step_m))
    step_a = max(1, BLOCK // (step_c * step_m))
    if step_m < m or step_c < c:
        step_a = 1
    for i in range(0, a, step_a):
        for j in range(0, c, step_c):
            for k in range(0, m, step_m):
                yield (
                    slice(i, i + step_a),
                    slice(j, j + step_c),
                    slice(k, k + step_m),
                )


def memory_order(x: Tensor) -> list[int] | None:
    """Axes from outermost to innermost if ``x`` fills its memory densely.

    Returns:
        list[int] | None: A permutation that makes ``x`` contiguous, or None
        if there is none (a slice with gaps, an expanded tensor).
    """
    stride = x.stride()
    order = sorted(range(x.dim()), key=lambda i: (-stride[i], i))
    return order if x.permute(order).is_contiguous() else None


def _as_boxes(x: Tensor, axis: int | None) -> tuple[Tensor, list[int]]:
    """Views a dense tensor as ``[A, C, M]`` in the order of its memory.

    Args:
        x (Tensor): Dense.
        axis (int, optional): The channel axis; None for a single scale.

    Returns:
        tuple[Tensor, list[int]]: The view (C is 1 without ``axis``) and the
        permutation of the axes it was made with.
    """
    order = memory_order(x)
    assert order is not None
    moved = x.permute(order)
    if axis is None:
        return moved.reshape(1, 1, -1), order
    at = order.index(axis)
    inner = moved.shape[at + 1 :].numel()
    return moved.reshape(-1, x.shape[axis], inner), order


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    axis: int | None,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Quantizes and dequantizes without autograd.

    Args:
        x (Tensor): float32, not empty, any strides.
        scale (Tensor): float32, of one element, or of C with ``axis``.
        zero_point (Tensor): int32, shaped like ``scale``.
        axis (int, optional): Axis of the C channels.
        qmin (int): Lowest code.
        qmax (int): Highest code.

    Returns:
        Tensor: float32, of x's shape and memory format. NaN stays NaN, so
        that it is found where it arose.
    """
    if usable(x, 'fake_quantize'):
        s, z = _spread(scale, zero_point, axis, x)
        return fused('fake_quantize', qmin, qmax, x, s, bits_of(z))
    if memory_order(x) is None:
        x = x.contiguous()
    out = torch.empty_like(x)
    source, _ = _as_boxes(x, axis)
    target, _ = _as_boxes(out, axis)
    shape = (1, -1, 1)
    s = scale.reshape(shape)
    z = zero_point.reshape(shape).to(torch.float32)
    # a GPU without the fused kernel gains nothing from blocks
    every = slice(None)
    blocks = _blocks(*source.shape) if x.is_cpu else [(every, every, every)]
    for i, j, k in blocks:
        cj = j if axis is not None else slice(None)
        y = target[i, j, k]
        torch.div(source[i, j, k], s[:, cj], out=y)
        y.round_().add_(z[:, cj]).clamp_(qmin, qmax)
        y.sub_(z[:, cj]).mul_(s[:, cj])
    return out


def _spread(
    scale: Tensor, zero_point: Tensor, axis: int | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that broadcast against ``x``."""
    if axis is None and scale.dim() <= x.dim():
        return scale, zero_point
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    return scale.reshape(shape), zero_point.reshape(shape)


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
        s, z = _spread(scale, zero_point, axis, x)
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
    if granularity.within:
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
    if granularity.within:
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
