# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Fast quantize-dequantize with the arithmetic of ONNX, without autograd.

In float32, ``(clamp(round(x / s) + z, qmin, qmax) - z) * s``, round half to
even: what ONNX's QuantizeLinear and DequantizeLinear compute, bit for bit.
Torch's fused kernels multiply by ``1 / s`` instead, which moves ties to the
next code.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .cuda import bits_of, fused, usable

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
        s, z = broadcast_grid(scale, zero_point, axis, x)
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


def broadcast_grid(
    scale: Tensor, zero_point: Tensor, axis: int | None, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and zero point that broadcast against ``x``."""
    if axis is None and scale.dim() <= x.dim():
        return scale, zero_point
    shape = [1] * x.dim()
    if axis is not None:
        shape[axis] = -1
    return scale.reshape(shape), zero_point.reshape(shape)
