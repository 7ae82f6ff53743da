# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What single output positions of a layer see of its input.

A row is the part of the input that one output position of one group is the
product of, in the order of :func:`weight_matrix`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmcv import ops
from torch import Tensor, nn
from torch.nn import functional

DEFORMABLE = (ops.DeformConv2d, ops.ModulatedDeformConv2d)
PACKS = (ops.DeformConv2dPack, ops.ModulatedDeformConv2dPack)


def weight_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A weight, or anything of its shape, as what rows are multiplied by.

    Args:
        layer (nn.Module): A linear layer or a convolution of any kind.
        weight (Tensor): Of the shape of its weight.

    Returns:
        Tensor: ``[G, R, N]``: of each group, output channels and columns.
    """
    groups = getattr(layer, 'groups', 1)
    if isinstance(layer, nn.ConvTranspose2d):
        # (in, out / groups, kH, kW)
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    return weight.flatten(1).unflatten(0, (groups, -1))


def weight_tensor(layer: nn.Module, matrix: Tensor) -> Tensor:
    """Inverse of :func:`weight_matrix`."""
    shape = layer.weight.shape
    if isinstance(layer, nn.ConvTranspose2d):
        inner = layer.in_channels // layer.groups
        parts = matrix.unflatten(2, (inner, *shape[2:]))
        return parts.transpose(1, 2).reshape(shape)
    return matrix.reshape(shape)


def sample_rows(
    layer: nn.Module,
    x: Tensor,
    count: int,
    generator: torch.Generator,
    steering: tuple[Tensor, ...] = (),
) -> Tensor:
    """Rows at random output positions of one call.

    Args:
        layer (nn.Module): A linear layer or a convolution of any kind.
        x (Tensor): Its input, (..., C), (B, C, H, W) or (C, H, W).
        count (int): How many rows at most; no position is taken twice.
        generator (torch.Generator): Draws the positions: the same for
            another tensor of this shape.
        steering (tuple[Tensor, ...]): Offsets, or offsets and masks, of a
            deformable convolution; see :func:`steering`.

    Returns:
        Tensor: ``[G, T, N]``, T rows, of the input's type.
    """
    if isinstance(layer, nn.Linear):
        flat = x.reshape(-1, x.shape[-1])
        return flat[_draw(len(flat), count, generator, x)][None]
    x = x if x.dim() == 4 else x[None]
    if isinstance(layer, DEFORMABLE):
        return _of_deformable(layer, x, steering, count, generator)
    if isinstance(layer, nn.ConvTranspose2d):
        return _of_map(
            layer, _spread(layer, x), (1, 1), True, count, generator
        )
    mode = layer.padding_mode
    x = functional.pad(
        x,
        layer._reversed_padding_repeated_twice,
        'constant' if mode == 'zeros' else mode,
    )
    return _of_map(layer, x, layer.stride, False, count, generator)


def sample_outputs(
    layer: nn.Module, y: Tensor, count: int, generator: torch.Generator
) -> Tensor:
    """What a layer gives at the positions of :func:`sample_rows`.

    Args:
        layer (nn.Module): A linear layer or a convolution of any kind.
        y (Tensor): Its output, or anything of its shape.
        count (int): As for :func:`sample_rows`.
        generator (torch.Generator): In the same state as there.

    Returns:
        Tensor: ``[G, T, R]``.
    """
    if not isinstance(layer, nn.Linear):
        y = y.movedim(-3, -1)
    flat = y.reshape(-1, y.shape[-1])
    rows = flat[_draw(len(flat), count, generator, y)]
    groups = getattr(layer, 'groups', 1)
    return rows.unflatten(1, (groups, -1)).transpose(0, 1)


@contextmanager
def steering(
    layers: Mapping[str, nn.Module],
) -> Iterator[dict[str, tuple[Tensor, ...]]]:
    """Watches what tells deformable convolutions where to look.

    Args:
        layers (Mapping[str, nn.Module]): By name, of any kind.

    Yields:
        dict[str, tuple[Tensor, ...]]: Offsets, or offsets and masks, of the
        call that runs now; of deformable convolutions alone.
    """
    found: dict[str, tuple[Tensor, ...]] = {}

    def given(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
        found[name] = args[1:]

    def made(name: str, _: nn.Module, __: tuple, offset: Tensor) -> None:
        if isinstance(layers[name], ops.DeformConv2dPack):
            found[name] = (offset,)
        else:
            down, along, mask = offset.chunk(3, 1)
            found[name] = torch.cat((down, along), 1), mask.sigmoid()

    hooks = []
    for name, layer in layers.items():
        if isinstance(layer, PACKS):
            # a layer of its own, called before the layer looks at its input
            branch = layer.conv_offset
            hooks.append(branch.register_forward_hook(partial(made, name)))
        elif isinstance(layer, DEFORMABLE):
            hooks.append(layer.register_forward_pre_hook(partial(given, name)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _draw(
    total: int, count: int, generator: torch.Generator, like: Tensor
) -> Tensor:
    found = torch.randperm(total, generator=generator, device=generator.device)
    return found[:count].to(like.device)


def _spread(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """The map over which a transposed convolution slides step by step."""
    high, wide = x.shape[2:]
    (step, along), extra = layer.stride, layer.output_padding
    found = x.new_zeros(
        *x.shape[:2], (high - 1) * step + 1, (wide - 1) * along + 1
    )
    found[:, :, ::step, ::along] = x
    edge = [
        gap * (kernel - 1) - pad
        for gap, kernel, pad in zip(
            layer.dilation, layer.kernel_size, layer.padding, strict=True
        )
    ]
    sides = (edge[1], edge[1] + extra[1], edge[0], edge[0] + extra[0])
    return functional.pad(found, sides)


def _of_map(
    layer: nn.Module,
    x: Tensor,
    stride: tuple[int, int],
    reverse: bool,
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """Rows of a kernel that slides over a padded map."""
    taps, sizes = [], []
    for axis in (0, 1):
        kernel, gap = layer.kernel_size[axis], layer.dilation[axis]
        span = gap * (kernel - 1) + 1
        sizes.append((x.shape[2 + axis] - span) // stride[axis] + 1)
        steps = torch.arange(kernel, device=x.device) * gap
        taps.append(steps.flip(0) if reverse else steps)
    area = sizes[0] * sizes[1]
    at = _draw(len(x) * area, count, generator, x)
    image, place = at // area, at % area
    down = (place // sizes[1] * stride[0])[:, None] + taps[0]
    along = (place % sizes[1] * stride[1])[:, None] + taps[1]
    # (T, kH, kW, C): channels come last where indices are apart
    found = x[image[:, None, None], :, down[:, :, None], along[:, None]]
    found = found.permute(3, 0, 1, 2).unflatten(0, (layer.groups, -1))
    return found.transpose(1, 2).flatten(2)


def _of_deformable(
    layer: nn.Module,
    x: Tensor,
    steering: tuple[Tensor, ...],
    count: int,
    generator: torch.Generator,
) -> Tensor:
    """By MMCV's own operator, each tap of a channel an output channel."""
    channels, kernel = x.shape[1], layer.weight.shape[2:]
    taps = kernel.numel()
    ones = torch.eye(taps, dtype=x.dtype, device=x.device)
    ones = ones.reshape(taps, 1, *kernel).repeat(channels, 1, 1, 1)
    shape = layer.stride, layer.padding, layer.dilation, channels
    if len(steering) == 1:
        found = ops.deform_conv2d(
            x, *steering, ones, *shape, layer.deform_groups
        )
    else:
        found = ops.modulated_deform_conv2d(
            x, *steering, ones, None, *shape, layer.deform_groups
        )
    flat = found.flatten(2).transpose(1, 2).flatten(0, 1)
    rows = flat[_draw(len(flat), count, generator, flat)]
    return rows.unflatten(1, (layer.groups, -1)).transpose(0, 1)
