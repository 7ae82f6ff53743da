# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers as single operations of a traced or exported graph.

The fast kernels write blocks whose bounds are Python numbers, and a tracer
would keep those of the one shape that it saw. In export mode a quantizer
calls one of these operations instead, which hold for every shape and carry
the encoding as their arguments:

- ``mmdet_ptq::quantize_dequantize(x, scale, zero_point, kind, axis,
  group_size, within, qmin, qmax)``
- ``mmdet_ptq::table_lookup(x, table, bounds, kind, axis, group_size,
  within)``
- ``mmdet_ptq::assign_groups(x, low, high, kind, axis, group_size, within,
  room)``, which says the row of scales that each channel takes
  (:mod:`.groups`)

``kind`` to ``within`` are the fields of a :class:`Granularity`, ``room`` is
what :func:`grid_costs` needs, the rest those of a :class:`UniformEncoding` or
a :class:`TableEncoding`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .granularity import Granularity
from .kernels import quantize_dequantize, to_dtype
from .table_encoding import TableEncoding

_EXPORTING: ContextVar[bool] = ContextVar('export_mode', default=False)


@contextmanager
def export_mode() -> Iterator[None]:
    """Quantizers called within are single operations of a graph.

    Not needed for ``torch.jit.trace``, ``torch.export.export`` and
    ``torch.compile``, which are noticed. Each thread has its own mode.
    """
    before = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(before)


def exporting() -> bool:
    """Whether quantizers are to be single operations now."""
    return torch.compiler.is_compiling() or _tracing() or _EXPORTING.get()


def sizes(x: Tensor) -> Sequence[int]:
    """The shape in Python numbers: ``torch.jit.trace`` has tensors there."""
    if torch.compiler.is_compiling() or not _tracing():
        return x.shape
    found: list[int] = torch.ops.aten.sym_size(x)
    return found


def _tracing() -> bool:
    found: bool = torch.jit.is_tracing()  # type: ignore
    return found


def fields(granularity: Granularity) -> tuple[str, int, int | None, bool]:
    """The arguments ``kind`` to ``within`` of an operation."""
    g = granularity
    return g.kind, g.axis, g.group_size, g.within


@torch.library.custom_op('mmdet_ptq::quantize_dequantize', mutates_args=())
def quantize_dequantize_op(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
    qmin: int,
    qmax: int,
) -> Tensor:
    """:func:`quantize_dequantize` as one operation, with its gradients."""
    grain = Granularity(kind, axis, group_size, within)
    y = quantize_dequantize(x, scale, zero_point, grain, qmin, qmax)
    return _laid_out_as(y, x)


@torch.library.custom_op('mmdet_ptq::table_lookup', mutates_args=())
def table_lookup_op(
    x: Tensor,
    table: Tensor,
    bounds: Tensor,
    kind: str,
    axis: int,
    group_size: int | None,
    within: bool,
) -> Tensor:
    """``decode(encode(x))`` of a :class:`TableEncoding` as one operation.

    NaN stays NaN. It has no gradient.
    """
    grain = Granularity(kind, axis, group_size, within)
    # as many bits as the table has values
    bits = (table.shape[1] - 1).bit_length()
    encoding = TableEncoding(bits, grain, table, bounds)
    y = encoding.decode(encoding.encode(x))
    y = torch.where(x.isnan(), x.to(torch.float32), y)
    return _laid_out_as(to_dtype(y, x.dtype), x)


def _laid_out_as(y: Tensor, x: Tensor) -> Tensor:
    """``y`` in the memory format that a graph expects of ``x``'s twin."""
    like = torch.empty_like(x)
    return y if y.stride() == like.stride() else like.copy_(y)


def _like_x(x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Through the quantizer's own gradient, of its own expansion of rows."""
    x, scale, zero_point = ctx.saved_tensors
    *grain, qmin, qmax = ctx.rest
    need = ctx.needs_input_grad[:2]
    with torch.enable_grad():
        x, scale = (
            t.detach().requires_grad_(n)
            for t, n in zip((x, scale), need, strict=True)
        )
        y = quantize_dequantize(
            x, scale, zero_point, Granularity(*grain), qmin, qmax
        )
    wanted = [t for t, n in zip((x, scale), need, strict=True) if n]
    found = iter(torch.autograd.grad(y, wanted, grad))
    return *(next(found) if n else None for n in need), *[None] * 7


quantize_dequantize_op.register_fake(_like_x)
quantize_dequantize_op.register_autograd(_backward, setup_context=_save)
table_lookup_op.register_fake(_like_x)
