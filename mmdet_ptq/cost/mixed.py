# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bits of products of which both operands have several widths.

Mostly each channel of one operand meets each of the other, and the mean
product of their bits is the product of their means. Here is where they meet
in pairs.
"""

from collections.abc import Iterator, Sequence
from typing import cast

from torch import nn

from ..layers import MatMul, QuantLayer
from ..quantizers import ChannelGroups
from .macs import Shape


def paired_bits(layer: nn.Module, inputs: Sequence[Shape]) -> float | None:
    """Bits of a MAC where channels of several widths meet in pairs.

    That is so in a convolution of several groups, whose output channels meet
    the input channels of their own group alone, and in a product whose
    operands have their widths along the same axis: along heads, or along
    what is summed up.

    Args:
        layer (nn.Module): A twin with its quantizers.
        inputs (Sequence): Shapes of the inputs of one call.

    Returns:
        float | None: Bits of the first operand times bits of the second, on
        average over MACs; None where means do.
    """
    if not isinstance(layer, QuantLayer):
        return None
    tensors = [(layer.act_quantizers[p], s) for p, s in _inputs(layer, inputs)]
    if not isinstance(layer, MatMul) and layer.weight_quantizer is not None:
        weight = layer.get_parameter('weight')
        tensors.insert(0, (layer.weight_quantizer, weight.shape))
    if len(tensors) != 2:
        return None
    (first, shape), (second, other) = tensors
    if not isinstance(first, ChannelGroups) or not isinstance(
        second, ChannelGroups
    ):
        return None
    one, two = widths(first, shape), widths(second, other)
    groups = _groups(layer, _axis(first, shape), _axis(second, other))
    if groups == 0 and len(one) == len(two):
        groups = len(one)
    if groups < 2 or len(one) % groups or len(two) % groups:
        return None
    pieces = zip(_pieces(one, groups), _pieces(two, groups), strict=True)
    return sum(_mean(a) * _mean(b) for a, b in pieces) / groups


def widths(quantizer: ChannelGroups, shape: Shape) -> list[int]:
    """Bits of each channel of a tensor."""
    rows = quantizer.row_widths(quantizer.granularity.num_rows(shape))
    channels = shape[quantizer.granularity.channel_axis(shape)]
    return [bits for bits in rows for _ in range(channels // len(rows))]


def _inputs(
    layer: QuantLayer, shapes: Sequence[Shape]
) -> Iterator[tuple[str, Shape]]:
    """Ports that have a quantizer, with the shape that arrives there."""
    for port, shape in zip(layer.ports, shapes, strict=False):
        if port in layer.act_quantizers:
            yield port, shape


def _axis(quantizer: ChannelGroups, shape: Shape) -> int:
    """Axis of the channels, counted from the end."""
    return quantizer.granularity.channel_axis(shape) - len(shape)


def _groups(layer: QuantLayer, first: int, second: int) -> int:
    """In how many groups channels meet; 0 if each meets one other."""
    if isinstance(layer, MatMul):
        # (..., n, k) and (..., k, m)
        paired = (first, second) == (-1, -2) or first == second < -2
        return 0 if paired else 1
    # rows of a transposed convolution are the same for all groups
    if layer.has_groups and layer.weight_axis == 0:
        return cast(int, layer.groups)
    return 1


def _pieces(values: list[int], count: int) -> list[list[int]]:
    size = len(values) // count
    return [values[i * size : (i + 1) * size] for i in range(count)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
