# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Turns a float model into one of twins, in place."""

from torch import nn

from ..registry import DECOMPOSED, QUANT_LAYERS
from .base import QuantLayer, quant_layers


def decompose(model: nn.Module) -> dict[str, str]:
    """Takes attention modules apart so that their layers can be quantized.

    Args:
        model (nn.Module): Changed in place; computes the same as before.

    Returns:
        dict[str, str]: Modules that cannot be taken apart, with the reason.
    """
    refused = {}
    for name, module in list(model.named_modules()):
        split_cls = DECOMPOSED.get(type(module))
        if split_cls is None:
            continue
        why_not = getattr(split_cls, 'why_not', lambda _: '')(module)
        if why_not:
            refused[name] = why_not
            continue
        module.__class__ = split_cls
        module.split()
    return refused


def convert(model: nn.Module) -> None:
    """Swaps every layer that has a twin for that twin, in place.

    The twins quantize nothing until quantizers are attached.
    """
    for module in list(model.modules()):
        twin = QUANT_LAYERS.get(type(module))
        if twin is not None:
            module.__class__ = twin
            module.init_twin()
    model.register_forward_pre_hook(_reset_levels)


def _reset_levels(model: nn.Module, _: tuple) -> None:
    for layer in model.modules():
        if isinstance(layer, QuantLayer):
            layer.reset_level()


__all__ = ['convert', 'decompose', 'quant_layers']
