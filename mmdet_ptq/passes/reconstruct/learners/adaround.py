# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Learned rounding."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ....checks import annotated, below_one, number, one_of
from ....errors import QuantConfigError
from ....layers import QuantLayer
from ....quantizers import BaseQuantizer, SoftRounding
from ....registry import LEARNERS
from .base import Learner, with_weights

ZETA, GAMMA = 1.1, -0.1

#: of a step: how far from a value that was found learning starts at most
NEAR = 0.25


@LEARNERS.register_module()
class AdaRound(Learner):
    """Learned rounding to the next value below or above.

    ``w_q = v_low + h(V) (v_high - v_low)`` with the rectified sigmoid ``h``
    (Nagel et al., Up or Down?, 2020, equations 21 to 24), starting from the
    float weight. Where an earlier pass has rounded the weight, it starts
    near the value that was found, and the other value is the next one on
    the side of the float weight; the bias keeps what that pass asks of it.
    On a uniform grid this is AdaRound; on any other it is the same with its
    own neighbouring values. The penalty ``reg sum(1 - |2h -
    1|^beta)`` is off for the first ``warmup`` of the steps, then beta falls
    from ``beta[0]`` to ``beta[1]``.

    Args:
        lr (float, optional): Rate of V. None takes ``6 / iters``, from 1e-3
            (what the papers have for 20000 steps) to 0.05: V has to travel
            to where ``h`` is 0 or 1, however few the steps. Defaults to
            None.
        reg (float): Factor of the penalty. Defaults to 0.01.
        warmup (float): Share of the steps without penalty. Defaults to 0.2.
        beta (tuple[float, float]): Exponent of the penalty, first and last.
            Defaults to (20, 2).
        schedule (str): How beta falls, ``'linear'`` (BRECQ, QDrop) or
            ``'cosine'`` (AIMET). Defaults to ``'linear'``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    weights = True

    def __init__(
        self,
        lr: float | None = None,
        reg: float = 0.01,
        warmup: float = 0.2,
        beta: tuple[float, float] = (20.0, 2.0),
        schedule: str = 'linear',
    ) -> None:
        self.lr = lr if lr is None else number('lr', lr, above=True)
        self.reg = number('reg', reg)
        self.warmup = below_one('warmup', warmup)
        annotated('beta', beta, tuple[float, float])
        first, last = beta
        self.beta = (
            number('beta', first, above=True),
            number('beta', last, above=True),
        )
        self.schedule = one_of('schedule', schedule, ('linear', 'cosine'))
        self._parts: list[tuple[QuantLayer, Tensor, nn.Parameter]] = []

    def check_weight(self, name: str, kind: type[BaseQuantizer]) -> None:
        """See :meth:`Learner.check_weight`."""
        if not issubclass(kind, SoftRounding):
            raise QuantConfigError(
                f'AdaRound: {name}: the rounding of a {kind.__name__} cannot '
                'be learned; learn LearnedWeights instead, or give the weight '
                'another quantizer'
            )

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._parts = []
        for layer in with_weights(layers):
            quantizer, weight = layer.weight_quantizer, layer.weight.detach()
            lower, fraction = _start(quantizer, weight, layer.rounded)
            logit = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)
            soft = nn.Parameter(logit)
            self._parts.append((layer, lower, soft))
            layer.learn_weight(self._source(layer, lower, soft))
            if layer.rounded is None:
                # the soft weight is the float one: nothing is to correct
                layer.shift_bias(None)
        lr = self.lr or min(0.05, max(1e-3, 6 / iters))
        return [dict(params=[soft for *_, soft in self._parts], lr=lr)]

    def _source(
        self, layer: QuantLayer, lower: Tensor, soft: nn.Parameter
    ) -> Any:
        # values are float32, whatever the layer computes in
        quantizer: Any = layer.weight_quantizer
        dtype = layer.weight.dtype
        low, high = quantizer.values(lower), quantizer.values(lower + 1)
        # asked of the parameters: passes run without gradients, only their
        # steps with
        if any(p.requires_grad for p in quantizer.parameters()):
            # a learned codebook moves both

            def weight() -> Tensor:
                low = quantizer.values(lower)
                high = quantizer.values(lower + 1)
                found = torch.lerp(low, high, rectified_sigmoid(soft))
                return found.to(dtype)

        else:

            def weight() -> Tensor:
                found = torch.lerp(low, high, rectified_sigmoid(soft))
                return found.to(dtype)

        return weight

    def beta_at(self, progress: float) -> float | None:
        """Exponent of the penalty, None before it starts."""
        if progress < self.warmup:
            return None
        gone = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == 'cosine':
            gone = (1 - math.cos(math.pi * gone)) / 2
        return self.beta[0] + (self.beta[1] - self.beta[0]) * gone

    def penalty(self, progress: float) -> Tensor | float:
        """See :meth:`Learner.penalty`."""
        beta = self.beta_at(progress)
        if beta is None or not self._parts:
            return 0.0
        total = torch.zeros((), device=self._parts[0][2].device)
        for *_, soft in self._parts:
            off = (2 * rectified_sigmoid(soft) - 1).abs()
            total = total + (1 - off**beta).sum()
        return self.reg * total

    @torch.no_grad()
    def harden(self) -> None:
        """Takes the value that is nearer by now."""
        for layer, lower, soft in self._parts:
            codes = lower + (soft >= 0).to(lower.dtype)
            values = layer.weight_quantizer.values(codes)
            layer.fix_weight(values.detach().to(layer.weight.dtype))
        self._parts = []


def _start(
    quantizer: Any, weight: Tensor, rounded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes of the values below, and how far above them learning starts."""
    toward = weight if rounded is None else rounded.lerp(weight, 1e-3)
    lower = quantizer.lower_codes(toward)
    low, high = quantizer.values(lower), quantizer.values(lower + 1)
    fraction = ((weight - low) / (high - low)).nan_to_num(0.5)
    fraction = fraction.detach().clamp(0, 1)
    if rounded is not None:
        up = (high - rounded).abs() < (rounded - low).abs()
        fraction = torch.where(
            up, fraction.clamp(min=1 - NEAR), fraction.clamp(max=NEAR)
        )
    return lower, fraction


def rectified_sigmoid(v: Tensor) -> Tensor:
    """``clip(sigmoid(v) 1.2 - 0.1, 0, 1)`` (AdaRound, equation 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
