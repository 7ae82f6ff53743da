# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Norms whose inputs can be quantized."""

from dataclasses import dataclass

from torch import nn

from ..errors import PTQError
from ..layers import InputLayerNorm
from ..registry import EDITS
from .edits import Edit
from .modules import find_module


@EDITS.register_module()
@dataclass
class NormInput(Edit):
    """A layer norm that got an input to quantize; its numbers stay.

    Attributes:
        norm (str): Name of an ``nn.LayerNorm``.
    """

    norm: str

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        norm = find_module(model, self.norm)
        if type(norm) is not nn.LayerNorm:
            raise PTQError(
                f'{self.norm!r} is a {type(norm).__name__}, and only the '
                'input of a plain nn.LayerNorm can be quantized'
            )
        norm.__class__ = InputLayerNorm

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`; there are no numbers."""
        self.apply(model)


def norm_inputs(model: nn.Module) -> list[NormInput]:
    """Gives every layer norm of a model an input to quantize.

    Args:
        model (nn.Module): Float; changed in place, its outputs are not.

    Returns:
        list[NormInput]: What was done.
    """
    found = [
        NormInput(name)
        for name, module in model.named_modules()
        if type(module) is nn.LayerNorm
    ]
    for edit in found:
        edit.apply(model)
    return found
