# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Sampled inputs of layers, as quantizers see them and as products do."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...layers import QuantLayer
from ...losses import GradientWeighted
from ...quantizers import Granularity


@dataclass(frozen=True)
class Sampled:
    """What a layer took at sampled output positions, and float.

    Attributes:
        level (int): Pyramid level.
        image (Tensor): int64 ``[T]``, which image each position is of; of
            products, each entry.
        inputs (tuple[Tensor, ...]): Rows ``[G, T, N]``, or the two operands
            of a product, ``[T, ..., n, k]`` and ``[T, ..., k, m]``.
        slopes (Tensor, optional): Gradient at the output of each position,
            ``[G, T, R]`` or ``[T, ..., n, m]``.
    """

    level: int
    image: Tensor
    inputs: tuple[Tensor, ...]
    slopes: Tensor | None = None

    @property
    def positions(self) -> int:
        """Output positions; of a product, rows of all entries."""
        first = self.inputs[0]
        return (
            first.shape[1]
            if len(self.inputs) == 1
            else (first.shape[0] * first.shape[-2])
        )


def merged(parts: list[Sampled], product: bool) -> Sampled:
    """Several of one level as one, in their order."""
    axis = 0 if product else 1
    inputs = zip(*(one.inputs for one in parts), strict=True)
    slopes = [one.slopes for one in parts if one.slopes is not None]
    return Sampled(
        parts[0].level,
        torch.cat([one.image for one in parts]),
        tuple(torch.cat(ones, axis) for ones in inputs),
        torch.cat(slopes, axis) if slopes else None,
    )


def as_input(layer: QuantLayer, rows: Tensor) -> Tensor:
    """Rows in the shape whose channels the input's quantizer knows.

    Args:
        layer (QuantLayer): A linear layer or a convolution.
        rows (Tensor): ``[G, T, N]``.

    Returns:
        Tensor: ``[T, C]``, or ``[T, C, taps, 1]`` of a convolution.
    """
    if isinstance(layer, nn.Linear):
        return rows[0]
    taps = layer.weight.shape[2:].numel()
    parts = rows.unflatten(2, (-1, taps)).transpose(0, 1)
    return parts.flatten(1, 2).unsqueeze(-1)


def as_rows(layer: QuantLayer, x: Tensor) -> Tensor:
    """Inverse of :func:`as_input`."""
    if isinstance(layer, nn.Linear):
        return x[None]
    parts = x.squeeze(-1).unflatten(1, (layer.groups, -1))
    return parts.transpose(0, 1).flatten(2)


def row_ids(grain: Granularity, shape: torch.Size, like: Tensor) -> Tensor:
    """Which row of a quantizer each element of a tensor belongs to.

    Args:
        grain (Granularity): Of the quantizer.
        shape (torch.Size): Of the tensor.
        like (Tensor): On the device of the result.

    Returns:
        Tensor: int64 of that shape.
    """
    count = grain.num_rows(shape)
    ids = torch.arange(count, device=like.device)[:, None]
    return grain.unrows(ids.expand(count, shape.numel() // count), shape)


def blocks_of(ids: Tensor) -> Tensor | None:
    """Rows of a quantizer that blocks of a matrix are made of.

    Args:
        ids (Tensor): int64 ``[B, U, N]``, from :func:`row_ids`.

    Returns:
        Tensor | None: int64 ``[B, J]``: of each block, the rows of J equal
        runs of columns. None if columns are arranged in another way.
    """
    first = ids[:, 0]
    runs = 1 + int((first[0, 1:] != first[0, :-1]).sum())
    if ids.shape[2] % runs:
        return None
    parts = ids.unflatten(2, (runs, -1))
    found = parts[:, 0, :, 0]
    same = bool((parts == found[:, None, :, None]).all())
    return found if same else None


def weighed(data: list[Sampled], loss: GradientWeighted) -> list[Sampled]:
    """Gradients become what errors are multiplied by before the square."""
    slopes = [one.slopes for one in data if one.slopes is not None]
    if not slopes:
        return data
    count = max(1, sum(g.numel() for g in slopes))
    total = torch.stack([g.double().square().sum() for g in slopes]).sum()
    mean = float(total) / count
    return [
        replace(one, slopes=loss.weigh(one.slopes, mean).sqrt())
        for one in data
    ]
