# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Takes modules apart whose inner products no twin would see."""

from abc import abstractmethod

from torch import nn

from .edits import Decomposed
from .parts import part_for


class Decomposable(nn.Module):
    """Mixin of the classes that stand in for a decomposed module."""

    @staticmethod
    def why_not(module: nn.Module) -> str:
        """Why this instance cannot be taken apart, '' if it can."""
        return ''

    @abstractmethod
    def split(self) -> None:
        """Turns a module that just changed to this class."""


def decompose(model: nn.Module) -> tuple[list[Decomposed], dict[str, str]]:
    """Takes attention and the like apart, so that all layers are called.

    Args:
        model (nn.Module): Changed in place; computes the same as before.

    Returns:
        tuple[list[Decomposed], dict[str, str]]: The edits that were made,
        and modules that cannot be taken apart, with the reason.
    """
    made, refused = [], {}
    for name, module in list(model.named_modules()):
        part = part_for(module)
        if part is None:
            continue
        why_not = part.why_not(module)
        if why_not:
            refused[name] = why_not
            continue
        made.append(Decomposed(name))
        made[-1].apply(model)
    return made, refused
