# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Attention whose softmax is computed in whole numbers."""

from dataclasses import dataclass

from torch import nn

from ..checks import whole
from ..errors import PTQError
from ..layers import MatMul
from ..registry import EDITS
from .edits import Edit
from .modules import find_module


@EDITS.register_module()
@dataclass
class WholeSoftmax(Edit):
    """A product that quantizes a softmax of whole logits.

    Its first operand is computed anew by
    :func:`mmdet_ptq.layers.integer_softmax` before it is quantized; while it
    is not, nothing changes.

    Attributes:
        layer (str): Name of a product whose first operand is a softmax.
        steps (int): Steps of the logits in an octave.
        sums (bool): Whether the product is divided by the sum of each
            quantized row, so that the weights of a query add up to 1.
    """

    layer: str
    steps: int
    sums: bool = True

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        whole('steps', self.steps, 1)
        layer = find_module(model, self.layer)
        if not isinstance(layer, MatMul):
            raise PTQError(
                f'{self.layer!r} is a {type(layer).__name__}, and only a '
                'product has a softmax as an operand'
            )
        layer.softmax_steps = self.steps
        layer.softmax_sums = self.sums

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`; there are no numbers."""
        self.apply(model)
