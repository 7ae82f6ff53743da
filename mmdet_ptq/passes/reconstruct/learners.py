# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a reconstruction may change in a unit."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...layers import QuantLayer
from ...quantizers import BaseQuantizer
from ...registry import LEARNERS

ZETA, GAMMA = 1.1, -0.1


class Learner:
    """Something that is learned for one unit at a time.

    Attributes:
        weights (bool): Whether it makes the unit's quantized weights; of
            such learners a pass can have one.
    """

    weights = False

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """Puts what is learned in place of what is fixed.

        Args:
            layers (dict[str, QuantLayer]): Layers of the unit.
            acts (list[BaseQuantizer]): Activation quantizers that no
                earlier unit reads.
            iters (int): How many steps will follow.

        Returns:
            list[dict]: Parameter groups: ``params``, ``lr`` and whether
            the rate falls to zero along a ``cosine``.
        """
        raise NotImplementedError

    def penalty(self, progress: float) -> Tensor | float:
        """A term of the loss; ``progress`` runs from 0 to 1."""
        return 0.0

    def harden(self) -> None:
        """Fixes what was learned in its deployed form."""
        raise NotImplementedError


def _with_weights(layers: dict[str, QuantLayer]) -> list[QuantLayer]:
    return [m for m in layers.values() if m.weight_quantizer is not None]


@LEARNERS.register_module()
class AdaRound(Learner):
    """Learned rounding to the next value below or above.

    ``w_q = v_low + h(V) (v_high - v_low)`` with the rectified sigmoid ``h``
    (Nagel et al., Up or Down?, 2020, equations 21 to 24), starting from the
    float weight. On a uniform grid this is AdaRound; on any other it is the
    same with its own neighbouring values. The penalty ``reg sum(1 - |2h -
    1|^beta)`` is off for the first ``warmup`` of the steps, then beta falls
    from ``beta[0]`` to ``beta[1]``.

    Args:
        lr (float, optional): Rate of V. None takes ``6 / iters``, from 1e-3
            (what the papers have for 20000 steps) to 0.05: V has to travel
            to where ``h`` is 0 or 1, however few the steps. Defaults to
            None.
        reg (float): Factor of the penalty. Defaults to 0.01.
        warmup (float): Share of the steps without penalty. Defaults to 0.2.
        beta (tuple[float, float]): Defaults to (20, 2).
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
        if schedule not in ('linear', 'cosine'):
            raise ValueError(
                f"schedule must be 'linear' or 'cosine', got {schedule!r}"
            )
        if not 0 <= warmup < 1:
            raise ValueError(f'warmup must be 0 to below 1, got {warmup!r}')
        if lr is not None and not lr > 0:
            raise ValueError(f'lr must be above 0, got {lr!r}')
        if not reg >= 0:
            raise ValueError(f'reg must not be negative, got {reg!r}')
        self.lr = lr
        self.reg = reg
        self.warmup = warmup
        self.beta = tuple(beta)
        self.schedule = schedule
        self._parts: list[tuple[QuantLayer, Tensor, nn.Parameter]] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._parts = []
        for layer in _with_weights(layers):
            quantizer, weight = layer.weight_quantizer, layer.weight.detach()
            lower = quantizer.lower_codes(weight)
            low, high = quantizer.values(lower), quantizer.values(lower + 1)
            fraction = ((weight - low) / (high - low)).nan_to_num(0.5)
            fraction = fraction.detach().clamp(0, 1)
            logit = -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)
            soft = nn.Parameter(logit)
            self._parts.append((layer, lower, soft))
            layer.weight_source = self._source(quantizer, lower, soft)
            # the soft weight is the float one, so nothing is to correct
            layer.bias_shift = None
        lr = self.lr or min(0.05, max(1e-3, 6 / iters))
        return [dict(params=[soft for *_, soft in self._parts], lr=lr)]

    def _source(
        self, quantizer: BaseQuantizer, lower: Tensor, soft: nn.Parameter
    ) -> Any:
        low, high = quantizer.values(lower), quantizer.values(lower + 1)
        # asked of the parameters: passes run without gradients, only their
        # steps with
        if any(p.requires_grad for p in quantizer.parameters()):
            # a learned codebook moves both

            def weight() -> Tensor:
                low = quantizer.values(lower)
                high = quantizer.values(lower + 1)
                return torch.lerp(low, high, rectified_sigmoid(soft))

        else:

            def weight() -> Tensor:
                return torch.lerp(low, high, rectified_sigmoid(soft))

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
            layer.weight_source = None
            codes = lower + (soft >= 0).to(lower.dtype)
            layer.rounded = layer.weight_quantizer.values(codes).detach()
        self._parts = []


def rectified_sigmoid(v: Tensor) -> Tensor:
    """``clip(sigmoid(v) 1.2 - 0.1, 0, 1)`` (AdaRound, equation 23)."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


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
        if lr is not None and not lr > 0:
            raise ValueError(f'lr must be above 0, got {lr!r}')
        self.lr = lr
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
            q for q in acts if hasattr(q, 'learn_step') and q.initialized
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
        relative (bool): See above. Defaults to True.

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
            if lr is not None and not lr >= 0:
                raise ValueError(f'{name} must not be negative, got {lr!r}')
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
        defaults = dict(lr_weight=1e-5, lr_range=1e-3, lr_act=0.1)
        if self.relative:
            ends = 2e-4 * math.sqrt(2000 / iters)
            weight = min(0.02, 2 / iters)
            defaults = dict(lr_weight=weight, lr_range=ends, lr_act=ends)
        rates = {
            k: defaults[k] if v is None else v for k, v in self.rates.items()
        }
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

        for layer in _with_weights(layers):
            weight = nn.Parameter(layer.weight.detach().clone())
            quantizer = layer.weight_quantizer
            self._layers.append((layer, weight))
            if hasattr(quantizer, 'learn_ends'):
                step = learn_ends(quantizer, 'lr_range')
            else:  # levels that are not evenly spaced
                step = 2 * float(weight.abs().max()) / 2**quantizer.bits
            learn([weight], 'lr_weight', step)
            if layer.bias is not None:
                shift = layer.bias_shift
                if shift is None:
                    shift = torch.zeros_like(layer.bias)
                layer.bias_shift = shift.detach().clone().requires_grad_()
                learn([layer.bias_shift], 'lr_bias', 1.0)
            layer.weight_source = partial(quantizer, weight)
        for quantizer in acts:
            if hasattr(quantizer, 'learn_ends') and quantizer.initialized:
                learn_ends(quantizer, 'lr_act')
        return groups

    @torch.no_grad()
    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for quantizer in self._ends:
            quantizer.learn_ends(False)
        for layer, weight in self._layers:
            layer.weight_source = None
            layer.rounded = layer.weight_quantizer(weight.detach())
            if layer.bias_shift is not None:
                layer.bias_shift = layer.bias_shift.detach()
        self._layers, self._ends = [], []


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
        distance (tuple[float, float]): Defaults to (1e-2, 1e-3).
        warmup (float): Defaults to 0.2.

    Raises:
        ValueError: If ``lr`` is not above 0.
    """

    weights = True

    def __init__(
        self,
        lr: float = 5e-4,
        distance: tuple[float, float] = (1e-2, 1e-3),
        warmup: float = 0.2,
    ) -> None:
        if not lr > 0:
            raise ValueError(f'lr must be above 0, got {lr!r}')
        if not 0 <= warmup < 1:
            raise ValueError(f'warmup must be 0 to below 1, got {warmup!r}')
        self.lr = lr
        self.distance = tuple(distance)
        self.warmup = warmup
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
        for layer in _with_weights(layers):
            quantizer = layer.weight_quantizer
            factor = nn.Parameter(torch.ones_like(layer.weight))
            params.append(factor)
            if hasattr(quantizer, 'learn_step'):
                quantizer.learn_step()
                params.append(quantizer.scale)
            self._parts.append((layer, factor))
            layer.weight_source = partial(_multiplied, layer, factor)
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
            layer.weight_source = None
            quantizer = layer.weight_quantizer
            if hasattr(quantizer, 'learn_step'):
                quantizer.learn_step(False)
            layer.rounded = _multiplied(layer, factor)
        self._parts = []


def _multiplied(layer: QuantLayer, factor: Tensor) -> Tensor:
    return layer.weight_quantizer(layer.weight * factor)


@LEARNERS.register_module()
class LearnedCodebook(Learner):
    """Learned parameters of weight quantizers that have them (LLAQ).

    Gradients of a layer's ``log k`` and of its ``a`` are cut to norm 1.

    Args:
        lr_k (float): Rate of ``log k``. Defaults to 1e-3.
        lr_a (float): Rate of ``a``. Defaults to 5e-3.

    Raises:
        ValueError: If a rate is not above 0.
    """

    def __init__(self, lr_k: float = 1e-3, lr_a: float = 5e-3) -> None:
        for name, lr in (('lr_k', lr_k), ('lr_a', lr_a)):
            if not lr > 0:
                raise ValueError(f'{name} must be above 0, got {lr!r}')
        self.lr_k = lr_k
        self.lr_a = lr_a
        self._quantizers: list[Any] = []

    def start(
        self,
        layers: dict[str, QuantLayer],
        acts: list[BaseQuantizer],
        iters: int,
    ) -> list[dict[str, Any]]:
        """See :meth:`Learner.start`."""
        self._quantizers = [
            m.weight_quantizer
            for m in _with_weights(layers)
            if hasattr(m.weight_quantizer, 'learn_codebook')
        ]
        learned = self._quantizers
        for quantizer in learned:
            quantizer.learn_codebook()
        return [
            dict(params=[q.log_k for q in learned], lr=self.lr_k, clip=1.0),
            dict(params=[q.a for q in learned], lr=self.lr_a, clip=1.0),
        ]

    def harden(self) -> None:
        """See :meth:`Learner.harden`."""
        for quantizer in self._quantizers:
            quantizer.learn_codebook(False)
        self._quantizers = []
