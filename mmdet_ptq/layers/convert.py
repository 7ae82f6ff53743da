# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Turns a float model into one of twins, in place."""

from torch import nn

from ..context import follow
from ..registry import QUANT_LAYERS
from .rounds import follow_rounds


def convert(model: nn.Module) -> None:
    """Swaps every layer that has a twin for that twin, in place.

    The twins quantize nothing until quantizers are attached.
    """
    for name, module in list(model.named_modules()):
        twin = QUANT_LAYERS.get(type(module))
        if twin is not None:
            module.__class__ = twin
            module.init_twin(name)
    follow(model)
    follow_rounds(model)
