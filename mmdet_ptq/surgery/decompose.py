# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Takes modules apart whose inner products no twin would see."""

from torch import nn

from ..registry import DECOMPOSED


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
