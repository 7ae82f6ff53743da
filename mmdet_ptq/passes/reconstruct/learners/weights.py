# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learned weights, biases and ranges."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ....checks import number
from ....layers import QuantLayer
from ....quantizers import BaseQuantizer, LearnsEnds
from ....registry import LEARNERS
from .base import Learner, with_weights


@LEARNERS.register_module()
class LearnedWeights(Learner):
    """Weights, biases and ranges, all continuous (AdaQuant, 2021).

    Weights are not held to the two nearest values. Ranges of weights and
    activations have two learned ends each.

    The published code has one rate for all weights (1e-5), biases and
    ranges of weights (1e-3) and activations (0.1), chosen for 8 bits. At
    low bit-widths the weights then hardly leave their step and the ends of
    activations are thrown away. Rates are therefore shares of each
    quantizer's own step and fall to zero along a cosine; ``relative=False``
    is the published form: absolute and constant.

    Args:
        lr_weight (float, optional): Rate of the weights. None takes ``2 /
            iters``, as much as crosses two steps, at most 0.02; or 1e-5 if
            not relative.
        lr_bias (float): Rate of the biases, in their own unit. Defaults to
            1e-3.
        lr_range (float, optional): Rate of the ends of weights. None takes
            ``2e-4 sqrt(2000 / iters)``, or 1e-3 if not relative.
        lr_act (float, optional): Rate of the ends of activations. None
            takes the same, or 0.1 if not relative.
        relative (bool): Whether rates are shares of each quantizer's step
            and fall to zero. Defaults to True.

    Raises:
        ValueError: If a rate is negative.
    """

    weights = True

    def __init__(
        self,
        lr_weight: float | None = None,
        lr_bias: float = 1e-3,
        lr_range: float | None = None,
        lr_act: float | None = None,
        relative: bool = True,
    ) -> None:
        self.rates = dict(
            lr_weight=lr_weight,
            lr_bias=lr_bias,
            lr_range=lr_range,
            lr_act=lr_act,
        )
        for name, lr in self.rates.items():
            if lr is not None:
                number(name, lr)
        self.relative = relative
        self._layers: list[tuple[QuantLayer, nn.Parameter]] = []
        self._ends: list[Any] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._layers, self._ends = [], []
        rates = self._rates(iters)
        groups = []

        def learn(params: list[Tensor], rate: str, step: float) -> None:
            lr = rates[rate] * (step if self.relative else 1)
            groups.append(dict(params=params, lr=lr, cosine=self.relative))

        def learn_ends(quantizer: Any, rate: str) -> float:
            """Returns the quantizer's mean step."""
            quantizer.learn_ends()
            self._ends.append(quantizer)
            width = (quantizer.high - quantizer.low).detach()
            step = float(width.mean()) / (2**quantizer.bits - 1)
            learn([quantizer.low, quantizer.high], rate, step)
            return step

        for layer in with_weights(layers):
            weight = nn.Parameter(layer.weight.detach().clone())
            quantizer = layer.weight_quantizer
            self._layers.append((layer, weight))
            if isinstance(quantizer, LearnsEnds):
                step = learn_ends(quantizer, 'lr_range')
            else:  # values that are not evenly spaced
                step = 2 * float(weight.abs().max()) / 2**quantizer.bits
            learn([weight], 'lr_weight', step)
            if layer.bias is not None:
                learn([_learn_shift(layer)], 'lr_bias', 1.0)
            layer.learn_weight(partial(quantizer, weight))
        for quantizer in acts:
            if isinstance(quantizer, LearnsEnds) and quantizer.initialized:
                learn_ends(quantizer, 'lr_act')
        return groups

    def _rates(self, iters: int) -> dict[str, float]:
        """Those that were given, and what the others are by default."""
        found = dict(lr_weight=1e-5, lr_range=1e-3, lr_act=0.1)
        if self.relative:
            ends = 2e-4 * math.sqrt(2000 / iters)
            weight = min(0.02, 2 / iters)
            found = dict(lr_weight=weight, lr_range=ends, lr_act=ends)
        given = {k: v for k, v in self.rates.items() if v is not None}
        return found | given

    @torch.no_grad()
    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for quantizer in self._ends:
            quantizer.learn_ends(False)
        for layer, weight in self._layers:
            layer.fix_weight(layer.weight_quantizer(weight.detach()))
            if layer.bias_shift is not None:
                layer.shift_bias(layer.bias_shift.detach())
        self._layers, self._ends = [], []


def _learn_shift(layer: QuantLayer) -> Tensor:
    """Makes the shift of a bias a tensor that is learned."""
    shift = layer.bias_shift
    if shift is None:
        shift = torch.zeros_like(layer.bias)
    shift = shift.detach().clone().requires_grad_()
    layer.shift_bias(shift)
    return shift
