# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learned steps of activations."""

import math
from typing import Any

from ....checks import number
from ....layers import QuantLayer
from ....quantizers import BaseQuantizer, LearnsStep
from ....registry import LEARNERS
from .base import Learner


@LEARNERS.register_module()
class LearnedSteps(Learner):
    """Learned step sizes of the activation quantizers (LSQ, 2020).

    Args:
        lr (float, optional): Rate, in units of the activations. None takes
            ``2e-4 sqrt(2000 / iters)`` of each quantizer's own step, which
            makes it independent of the scale of the tensors. Defaults to
            None.
        cosine (bool): Whether the rate falls to zero. Defaults to True.

    Raises:
        ValueError: If ``lr`` is not above 0.
    """

    def __init__(self, lr: float | None = None, cosine: bool = True) -> None:
        self.lr = lr if lr is None else number('lr', lr, above=True)
        self.cosine = cosine
        self._acts: list[Any] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._acts = [
            q for q in acts if isinstance(q, LearnsStep) and q.initialized
        ]
        groups = []
        for quantizer in self._acts:
            quantizer.learn_step()
            lr = self.lr or (
                2e-4
                * math.sqrt(2000 / iters)
                * float(quantizer.scale.detach().mean())
            )
            groups.append(
                dict(params=[quantizer.scale], lr=lr, cosine=self.cosine)
            )
        return groups

    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for quantizer in self._acts:
            quantizer.learn_step(False)
        self._acts = []
