# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bytes of the parameters."""

from typing import Any

from torch import nn

from ..layers import quant_layers
from ..quantizers import BaseQuantizer, PerInstance
from ..structures import LayerGraph
from .macs import Shape

#: where what belongs to no layer is counted
REST = ''


def storage_mb(
    model: nn.Module, graph: LayerGraph | None = None
) -> tuple[float, float]:
    """Size of the parameters before and after quantization.

    Each parameter counts once, however many modules or calls share it.

    Args:
        model (nn.Module): With quantizers attached.
        graph (LayerGraph, optional): See :func:`storage_bits`.

    Returns:
        tuple[float, float]: 10^6 bytes with float32 parameters, and with
        codes, the quantizers' own parameters, and float32 for the rest.
    """
    found = storage_bits(model, graph).values()
    full, packed = sum(f for f, _ in found), sum(p for _, p in found)
    return full / 8e6, packed / 8e6


def storage_bits(
    model: nn.Module, graph: LayerGraph | None = None
) -> dict[str, tuple[int, int]]:
    """Size of each layer before and after quantization.

    What layers share counts at the first of them.

    Args:
        model (nn.Module): With quantizers attached.
        graph (LayerGraph, optional): Its survey. From the shapes in it
            follows how many scales an input gets that has no range yet;
            without it those count as none.

    Returns:
        dict[str, tuple[int, int]]: Bits by name of the layer, and by
        :data:`REST` what belongs to no layer: norms, embeddings.
    """
    layers: dict[str, Any] = dict(quant_layers(model))
    full = {n: 0 for n in layers} | {REST: 0}
    owners = {
        id(p): name
        for name, layer in reversed([*layers.items()])
        for p in layer._parameters.values()
        if p is not None
    }
    for name, p in model.named_parameters():
        if '_quantizer' not in name:
            full[owners.get(id(p), REST)] += p.numel() * 32
    packed, seen = dict(full), set()
    for name, layer in layers.items():
        quantizer = layer.weight_quantizer
        if quantizer is not None and id(layer.weight) not in seen:
            seen.add(id(layer.weight))
            shape = layer.weight.shape
            packed[name] += quantizer.storage_bits(shape)
            packed[name] -= shape.numel() * 32
        for port, quantizer in layer.act_quantizers.items():
            if id(quantizer) not in seen:
                seen.add(id(quantizer))
                shape = _input_shape(graph, name, port)
                packed[name] += _scale_bits(quantizer, layer.levels, shape)
    return {name: (full[name], packed[name]) for name in full}


def _input_shape(
    graph: LayerGraph | None, layer: str, port: str
) -> Shape | None:
    if graph is None or layer not in graph.layers:
        return None
    node = graph.layers[layer]
    value = node.calls[0].inputs[node.ports.index(port)]
    return graph.values[value].shape


def _scale_bits(
    quantizer: BaseQuantizer, levels: int, shape: Shape | None
) -> int:
    """Bits of the parameters that the quantizer of an input has or gets."""
    if bool(quantizer.initialized):
        return quantizer.parameter_bits(quantizer.num_rows())
    if shape is None:
        return 0
    if isinstance(quantizer, PerInstance):
        return quantizer.parameter_bits(quantizer.num_groups)
    rows = quantizer.granularity.num_rows(shape)
    each = quantizer.parameter_bits(rows)
    return each * levels if quantizer.per_level else each
