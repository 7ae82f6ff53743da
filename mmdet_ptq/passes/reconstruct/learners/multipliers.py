# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learned multipliers of weights."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....checks import annotated, below_one, number
from ....layers import QuantLayer
from ....quantizers import BaseQuantizer, LearnsStep
from ....registry import LEARNERS
from .base import Learner, with_weights


@LEARNERS.register_module()
class SubsetMultipliers(Learner):
    """SubSetQ's element-wise multipliers and channel scales (2022).

    Each weight is multiplied by a learned number before it takes the
    nearest value of its subset, and each channel's scale is learned. The
    penalty ``d || |W| - |W_q| ||_2`` keeps weights near where they were; d
    falls from ``distance[0]`` to ``distance[1]`` after ``warmup`` of the
    steps.

    Args:
        lr (float): Rate of both, falling to zero. The published code has
            1e-4 at 4 bits and 5e-4 below. Defaults to 5e-4.
        distance (tuple[float, float]): d, first and last. Defaults to
            (1e-2, 1e-3).
        warmup (float): Share of the steps before d falls. Defaults to 0.2.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    weights = True

    def __init__(
        self,
        lr: float = 5e-4,
        distance: tuple[float, float] = (1e-2, 1e-3),
        warmup: float = 0.2,
    ) -> None:
        self.lr = number('lr', lr, above=True)
        annotated('distance', distance, tuple[float, float])
        first, last = distance
        self.distance = (number('distance', first), number('distance', last))
        self.warmup = below_one('warmup', warmup)
        self._parts: list[tuple[QuantLayer, nn.Parameter]] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._parts = []
        params = []
        for layer in with_weights(layers):
            quantizer = layer.weight_quantizer
            factor = nn.Parameter(torch.ones_like(layer.weight))
            params.append(factor)
            if isinstance(quantizer, LearnsStep):
                quantizer.learn_step()
                params.append(quantizer.scale)
            self._parts.append((layer, factor))
            layer.learn_weight(partial(_multiplied, layer, factor))
        return [dict(params=params, lr=self.lr, cosine=True)]

    def penalty(self, progress: float) -> Tensor | float:
        """See :meth:`Learner.penalty`."""
        gone = max(0.0, (progress - self.warmup) / (1 - self.warmup))
        first, last = self.distance
        total: Tensor | float = 0.0
        for layer, factor in self._parts:
            off = layer.weight.abs() - _multiplied(layer, factor).abs()
            total = total + off.norm()
        return (first + (last - first) * gone) * total

    @torch.no_grad()
    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for layer, factor in self._parts:
            quantizer = layer.weight_quantizer
            if isinstance(quantizer, LearnsStep):
                quantizer.learn_step(False)
            layer.fix_weight(_multiplied(layer, factor))
        self._parts = []


def _multiplied(layer: QuantLayer, factor: Tensor) -> Tensor:
    return layer.weight_quantizer(layer.weight * factor)
