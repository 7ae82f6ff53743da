# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Bytes of the parameters."""

from typing import Any

from torch import nn

from ..layers import quant_layers


def storage_mb(model: nn.Module) -> tuple[float, float]:
    """Size of the parameters before and after quantization.

    Each parameter counts once, however many modules or calls share it.

    Args:
        model (nn.Module): With quantizers attached.

    Returns:
        tuple[float, float]: 10^6 bytes with float32 parameters, and with
        codes, the quantizers' own parameters, and float32 for the rest.
    """
    layers: list[Any] = list(quant_layers(model).values())
    own = {n: p for n, p in model.named_parameters() if '_quantizer' not in n}
    full = sum(p.numel() for p in own.values()) * 32
    packed = full
    weights = {
        id(layer.weight): layer
        for layer in layers
        if layer.weight_quantizer is not None
    }
    for layer in weights.values():
        shape = layer.weight.shape
        packed += layer.weight_quantizer.storage_bits(shape)
        packed -= shape.numel() * 32
    shared = {
        id(q): q for layer in layers for q in layer.act_quantizers.values()
    }
    for quantizer in shared.values():
        packed += quantizer.parameter_bits(quantizer.num_rows())
    return full / 8e6, packed / 8e6
