# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learned codebooks."""

from typing import Any

from ....checks import number
from ....layers import QuantLayer
from ....quantizers import BaseQuantizer, LearnsTable
from ....registry import LEARNERS
from .base import Learner, with_weights


@LEARNERS.register_module()
class LearnedCodebook(Learner):
    """Learned parameters of weight quantizers that have them (LLAQ).

    Gradients of a layer's ``log k`` and of its ``a`` are cut to length 1.

    Args:
        lr_k (float): Rate of ``log k``. Defaults to 1e-3.
        lr_a (float): Rate of ``a``. Defaults to 5e-3.

    Raises:
        ValueError: If a rate is not above 0.
    """

    def __init__(self, lr_k: float = 1e-3, lr_a: float = 5e-3) -> None:
        self.lr_k = number('lr_k', lr_k, above=True)
        self.lr_a = number('lr_a', lr_a, above=True)
        self._quantizers: list[LearnsTable] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._quantizers = [
            m.weight_quantizer
            for m in with_weights(layers)
            if isinstance(m.weight_quantizer, LearnsTable)
        ]
        learned = [q.learn_table() for q in self._quantizers]
        return [
            dict(params=[p[name] for p in learned], lr=lr, clip=1.0)
            for name, lr in (('k', self.lr_k), ('a', self.lr_a))
        ]

    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for quantizer in self._quantizers:
            quantizer.learn_table(False)
        self._quantizers = []
