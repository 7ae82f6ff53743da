# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Extremes and representative samples of tensors, without copying them."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..checks import whole
from ..quantizers.fake_quantize import memory_order
from ..quantizers.granularity import Granularity

#: most elements sampled from a tensor by one call
SAMPLE = 1 << 16
#: most elements sampled from a row, and from all rows together, where there
#: are several
ROW_SAMPLE, ROWS_SAMPLE = 1 << 12, 1 << 18


def row_extremes(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Exact minimum and maximum of every row.

    Args:
        x (Tensor): Not empty, any strides.
        granularity (Granularity): What a row is.

    Returns:
        tuple[Tensor, Tensor]: ``[K]`` each.
    """
    if granularity.kind == 'tensor':
        # torch.aminmax is fifty times slower where strides are permuted
        order = memory_order(x)
        low, high = torch.aminmax(x if order is None else x.permute(order))
        return low.reshape(1), high.reshape(1)
    rows = granularity.num_rows(x.shape)
    if granularity.within:
        flat = granularity.rows(x)
        return flat.amin(1), flat.amax(1)
    axis = granularity.channel_axis(x.shape)
    if granularity.kind == 'row':
        return x.amin(axis).reshape(-1), x.amax(axis).reshape(-1)
    rest = [i for i in range(x.dim()) if i != axis]
    low, high = (x.amin(rest), x.amax(rest)) if rest else (x, x)
    return low.reshape(rows, -1).amin(1), high.reshape(rows, -1).amax(1)


def sample_elements(x: Tensor, granularity: Granularity) -> tuple[Tensor, int]:
    """Draws the same share of elements from every row.

    Which elements are drawn depends on the shape of ``x`` and on nothing
    else, so that neither the order of calls nor strides change a result.

    Args:
        x (Tensor): Not empty, any strides.
        granularity (Granularity): What a row is.

    Returns:
        tuple[Tensor, int]: The sample ``[K, S]``, all of a small tensor, and
        how many elements each of its elements stands for.
    """
    if granularity.within:
        return granularity.rows(x), 1
    if granularity.kind == 'tensor':
        picked, weight = _pick(x.unsqueeze(0), SAMPLE)
        return picked, weight
    rows = granularity.num_rows(x.shape)
    moved = x.movedim(granularity.axis, 0)
    limit = max(64, min(ROW_SAMPLE, ROWS_SAMPLE // rows))
    # a group of channels is sampled channel by channel
    limit = max(1, limit * rows // moved.shape[0])
    picked, weight = _pick(moved, limit)
    return picked.reshape(rows, -1), weight


def sample_tokens(
    x: Tensor, channel_axis: int, limit: int
) -> tuple[Tensor, int]:
    """Draws positions of a map, each with all its channels.

    The positions of all other axes, in the order of their memory were ``x``
    contiguous, are cut into strata of equal length, and one of each is
    drawn: a sample covers every image and every part of it. Which ones are
    drawn depends on the shape of ``x`` and on nothing else.

    Args:
        x (Tensor): Not empty, any strides: (B, C, H, W) with axis 1, or
            (B, N, C) with axis -1.
        channel_axis (int): Axis of the C channels.
        limit (int): Most positions, at least 1.

    Returns:
        tuple[Tensor, int]: ``[T, C]``, which may share the memory of ``x``,
        and how many positions each stands for. Of N positions, T is N where
        that is no more than ``limit``, else ``N // ceil(N / limit)``: from
        half of ``limit`` to all of it.

    Raises:
        ValueError: If ``limit`` is not a whole number from 1.
    """
    limit = whole('limit', limit, 1)
    picked, weight = _pick(x.movedim(channel_axis, 0), limit)
    return picked.t(), weight


def _pick(x: Tensor, limit: int) -> tuple[Tensor, int]:
    """Samples ``[C, ...]`` along all but its first axis, to ``[C, S]``."""
    count = math.prod(x.shape[1:])
    if count <= limit:
        return x.reshape(x.shape[0], -1), 1
    if x.is_contiguous():
        index, weight = jittered_index(count, limit, x.device)
        return x.reshape(x.shape[0], -1).index_select(1, index), weight
    # reshape would copy all of x: gather from its storage by strides
    offset, weight = _offsets(x.shape[1:], x.stride()[1:], limit, x.device)
    reach = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    flat = x.as_strided((reach + 1,), (1,))
    first = torch.arange(x.shape[0], device=x.device) * x.stride(0)
    picked = flat.index_select(0, (first[:, None] + offset).reshape(-1))
    return picked.reshape(x.shape[0], -1), weight


@lru_cache(maxsize=64)
def _offsets(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    limit: int,
    device: torch.device,
) -> tuple[Tensor, int]:
    """Where the elements of :func:`jittered_index` lie in memory."""
    index, weight = jittered_index(math.prod(shape), limit, device)
    offset = torch.zeros_like(index)
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        offset += index % size * stride
        index = index // size
    return offset, weight


@lru_cache(maxsize=64)
def jittered_index(
    count: int, limit: int, device: torch.device
) -> tuple[Tensor, int]:
    """Positions of a sample of ``range(count)``, one from each stratum.

    A plain stride would meet the same column or channel again and again
    where it shares a factor with the width; the position in a stratum walks
    by the golden ratio instead.

    Args:
        count (int): Number of elements, more than ``limit``.
        limit (int): Most positions.
        device (torch.device): Where the positions are wanted.

    Returns:
        tuple[Tensor, int]: int64 positions, increasing, and the stratum's
        length, which is what each position stands for.
    """
    width = -(-count // limit)
    strata = torch.arange(count // width, device=device)
    phase = (strata * 2654435769) & 0xFFFFFFFF
    return strata * width + ((phase * width) >> 32), width
