# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Turns a float model into one of twins, in place."""

from torch import nn

from ..context import follow
from .base import QuantLayer
from .rounds import follow_rounds
from .twins import is_leaf, twin_class


def convert(model: nn.Module) -> None:
    """Swaps every layer that has a twin for that twin, in place.

    The twins quantize nothing until quantizers are attached.
    """
    for name, module in list(model.named_modules()):
        if is_leaf(module) and not isinstance(module, QuantLayer):
            module.__class__ = twin_class(module)
            module.init_twin(name)
    follow(model)
    follow_rounds(model)
