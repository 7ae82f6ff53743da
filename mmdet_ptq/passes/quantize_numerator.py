# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass after which attention quantizes the numerator of its softmax."""

from typing import ClassVar

from ..calibration import Session
from ..checks import one_of
from ..registry import PASSES
from ..surgery import DIVISORS, SoftmaxNumerator
from .base import BasePass


@PASSES.register_module()
class QuantizeNumerator(BasePass):
    """Has attentions quantize ``exp(l - max l)`` and divide after the product.

    With hundreds of keys the largest attention of a row is small, and one
    grid from 0 to 1 spends most of its codes where nothing is. The numerator
    of the softmax has a maximum of 1 in each row. The float detector stays
    the same.

    Args:
        divide (str): By the sum of the ``'float'`` numerators, or of the
            ``'quantized'`` ones, so that the weights of each query add up to
            1. Defaults to ``'float'``.

    Raises:
        ValueError: If ``divide`` is neither.
    """

    gives: ClassVar[frozenset[str]] = frozenset({'numerators'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'numerators', 'whole', 'observers', 'ranges', 'learned'}
    )
    for_attention: ClassVar[bool] = True

    def __init__(self, divide: str = 'float') -> None:
        self.divide = one_of('divide', divide, DIVISORS)

    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        products = products_of_softmax(session)
        for name in products:
            session.edit(SoftmaxNumerator(name, self.divide))
        if products:
            session.notes.append(
                f'QuantizeNumerator: {len(products)} products take the '
                'numerator of their softmax'
            )
            return
        session.warn(
            'QuantizeNumerator: no quantized product has a softmax as its '
            'first operand here, so nothing was changed: take the recipe gptq '
            'in place of gptq_attention (gptq_codebook in place of '
            'gptq_codebook_attention), or leave this pass out'
        )


def products_of_softmax(session: Session) -> list[str]:
    """Products whose first operand is a softmax that is quantized."""
    return [
        name
        for name, node in session.graph.layers.items()
        if 'softmax' in node.port_roles.get('a', ())
        and session.plan.layers[name].acts['a'] is not None
    ]
