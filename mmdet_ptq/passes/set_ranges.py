# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges of weights from themselves, of activations from statistics."""

from typing import ClassVar

import torch
from torch import Tensor

from ..calibration import Session
from ..errors import CalibrationError, QuantConfigError
from ..observers import (
    LpObserver,
    fetch,
    ranges_of,
    search_weight_range,
    set_range,
)
from ..quantizers import BaseQuantizer, FitsTensor
from ..registry import OBSERVERS, PASSES, build_from
from .base import BasePass

WEIGHT_OBSERVER = dict(type='LpObserver', p=2.0)


@PASSES.register_module()
class SetRanges(BasePass):
    """Sets the range of every quantizer.

    What else a quantizer of activations has, such as the base of an AdaLog,
    it finds on the histogram of its observer, if that keeps one.

    Args:
        weight_observer (dict): Observer of weights; an ``LpObserver``
            searches each channel exactly. Defaults to
            ``dict(type='LpObserver', p=2.0)``.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'observers'})
    gives: ClassVar[frozenset[str]] = frozenset({'ranges'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'chosen', 'corrected', 'learned', 'noisy'}
    )

    def __init__(self, weight_observer: dict = WEIGHT_OBSERVER) -> None:
        self.weight_observer = weight_observer
        build_from(
            OBSERVERS, self.weight_observer, 'SetRanges.weight_observer'
        )

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        observer = build_from(OBSERVERS, self.weight_observer)
        for name, layer in session.layers.items():
            quantizer = layer.weight_quantizer
            if quantizer is None or isinstance(quantizer, FitsTensor):
                continue
            why = observer.why_not(quantizer)
            if why:
                raise QuantConfigError(f'SetRanges: {name}.weight: {why}')

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        with session.stage('weight ranges'):
            self._weights(session)
        with session.stage('activation ranges'):
            self._activations(session)

    def _weights(self, session: Session) -> None:
        layers = session.layers
        quantized = [n for n, p in session.plan.layers.items() if p.weight]
        ranged, ends = [], []
        for i, name in enumerate(quantized):
            session.progress('weight ranges', name, i, len(quantized))
            quantizer = layers[name].weight_quantizer
            weight = layers[name].weight.detach()
            layers[name].forget_rounding()
            if isinstance(quantizer, FitsTensor):
                quantizer.fit(weight)
            else:
                ranged.append(quantizer)
                ends += self.weight_range(weight, quantizer)
        # of all layers, a GPU is asked once
        ends = fetch(ends)
        for quantizer, *found in zip(
            ranged, ends[::2], ends[1::2], strict=True
        ):
            quantizer.set_range(*found)

    def weight_range(
        self, weight: Tensor, quantizer: BaseQuantizer
    ) -> tuple[Tensor, Tensor]:
        """The range that a weight gets.

        Args:
            weight (Tensor): The float weight.
            quantizer (BaseQuantizer): Its quantizer, none that
                :class:`FitsTensor`.

        Returns:
            tuple[Tensor, Tensor]: Low and high, for ``set_range``.
        """
        observer = build_from(OBSERVERS, self.weight_observer)
        if isinstance(observer, LpObserver):
            return search_weight_range(weight, quantizer, p=observer.p)
        observer.bind(quantizer.granularity)
        observer.observe(weight)
        return observer.ranges(quantizer)

    def _activations(self, session: Session) -> None:
        layers, groups = session.layers, session.plan.groups
        pairs = []
        for name, port in (group[0] for group in groups):
            quantizer = layers[name].act_quantizers[port]
            observer = session.stats.of_rows((name, port), quantizer)
            if observer is None:
                raise CalibrationError(
                    f'{name}: there are no statistics for the quantizer of '
                    f'its {port}; put Observe after the pass that replaced it'
                )
            pairs.append((observer, quantizer))
        found = ranges_of(pairs)
        for i, (group, (observer, quantizer)) in enumerate(
            zip(groups, pairs, strict=True)
        ):
            name = group[0][0]
            session.progress('activation ranges', name, i, len(groups))
            set_range(quantizer, observer, *next(found))
