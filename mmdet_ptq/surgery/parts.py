# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which class stands in for a decomposed module."""

from importlib import import_module

from torch import nn

from ..registry import DECOMPOSED


def part_for(module: nn.Module) -> type | None:
    """The class that a module is to become, None if it stays as it is.

    Args:
        module (nn.Module): Of exactly the class that is looked up.
    """
    # a package that need not be there, and that takes seconds to import
    if type(module).__module__.startswith('mmpretrain.'):
        import_module('.mmpretrain', __package__)
    return DECOMPOSED.get(type(module))
