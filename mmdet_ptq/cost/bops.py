# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bits of what a layer multiplies, and bit operations."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..layers import QuantLayer
from ..structures import LayerGraph, LayerPlan, QuantSpec
from .macs import Bits, Macs
from .mixed import paired_bits

FLOAT_BITS = 32


def operand_bits(
    plan: LayerPlan, layer: nn.Module | None = None
) -> tuple[float, float]:
    """Bits of the two numbers that a layer multiplies, 32 for float.

    Args:
        plan (LayerPlan): What became of the layer.
        layer (nn.Module, optional): The layer. Where it has quantizers,
            widths that differ between channels are averaged: each output
            channel multiplies as often as another, and each input channel.
            Where they meet in pairs, :func:`paired_bits` says more.
    """
    specs = {'weight': plan.weight, **plan.acts}
    found = {}
    if isinstance(layer, QuantLayer):
        found = {'weight': layer.weight_quantizer, **layer.act_quantizers}
    # a product has two ports and no weight
    first, second = (
        _bits(spec, layer, found.get(name))
        for name, spec in [*specs.items()][-2:]
    )
    return first, second


def _bits(spec: QuantSpec | None, layer: Any, quantizer: Any) -> float:
    if spec is None:
        return FLOAT_BITS
    if quantizer is None:
        return spec.bits
    shape = layer.weight.shape if quantizer.role == 'weight' else None
    bits: float = quantizer.mean_bits(shape)
    return bits


def bops(
    macs: Macs, bits: Bits, paired: Mapping[str, float] | None = None
) -> float:
    """Bit operations: MACs times the bits of both operands, summed.

    Args:
        macs (Mapping): From :func:`count_macs`.
        bits (Mapping): From :func:`operand_bits`, for each layer.
        paired (Mapping, optional): From :func:`paired_bits`, for layers
            where the product of means is wrong.

    Returns:
        float: BOPs; divided by 1024 they are float32 MACs worth as much.
    """
    each = {name: w * a for name, (w, a) in bits.items()}
    each.update(paired or {})
    return sum(sum(n) * each[name] for name, n in macs.items())


def all_paired_bits(
    modules: Mapping[str, nn.Module], graph: LayerGraph, macs: Macs
) -> dict[str, float]:
    """What :func:`paired_bits` says of the layers where it says something."""
    found = {}
    for name in macs:
        inputs = graph.layers[name].calls[0].inputs
        shapes = [graph.values[i].shape for i in inputs]
        bits = paired_bits(modules[name], shapes)
        if bits is not None:
            found[name] = bits
    return found
