# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Attention that quantizes the numerator of its softmax."""

from dataclasses import dataclass

from torch import nn

from ..checks import one_of
from ..errors import PTQError
from ..layers import MatMul
from ..registry import EDITS
from .edits import Edit
from .modules import find_module

DIVISORS = ('float', 'quantized')


@EDITS.register_module()
@dataclass
class SoftmaxNumerator(Edit):
    """A product that takes ``exp(l - max l)`` and is divided afterwards.

    With logits l and ``E = exp(l - max l)``, softmax times V is ``E V / sum
    E``. The maximum of each row of E is 1, whatever its length is. In the
    product E is the softmax over its largest value, so nothing around it
    changes, and neither does the float model.

    Attributes:
        layer (str): Name of a product whose first operand is a softmax.
        divide (str): By which sum: of the ``'float'`` or of the
            ``'quantized'`` numerators.
    """

    layer: str
    divide: str = 'float'

    def apply(self, model: nn.Module) -> None:
        """See :meth:`Edit.apply`."""
        one_of('divide', self.divide, DIVISORS)
        layer = find_module(model, self.layer)
        if not isinstance(layer, MatMul):
            raise PTQError(
                f'{self.layer!r} is a {type(layer).__name__}, and only a '
                'product has a softmax as an operand'
            )
        layer.numerator = self.divide

    def rebuild(self, model: nn.Module) -> None:
        """See :meth:`Edit.rebuild`; there are no numbers."""
        self.apply(model)
