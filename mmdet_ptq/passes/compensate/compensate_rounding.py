# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that rounds weights so that their errors make up for each other."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...calibration import (
    Images,
    Session,
    UnitView,
    frozen,
    observing,
    sample_rows,
)
from ...checks import number, one_of, whole
from ...detectors import adapter_for
from ...layers import float_mode, quantizing
from ...registry import PASSES
from ...structures import Unit
from ..base import BasePass
from .layer import round_layer
from .moments import PairedMoments

UNITS = ('block', 'layer')


@PASSES.register_module()
class CompensateRounding(BasePass):
    """Rounds column by column, errors pushed into columns to come (GPTQ)."""

    needs: ClassVar[frozenset[str]] = frozenset({'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'learned'})
    refuses: ClassVar[frozenset[str]] = frozenset({'learned'})

    def __init__(
        self,
        unit: str = 'block',
        rows: int = 256,
        damping: float = 0.01,
        towards_float: bool = True,
        rounds: int = 1,
        inside: str = 'float',
    ) -> None:
        self.unit = one_of('unit', unit, UNITS)
        self.rows = whole('rows', rows, 1)
        self.damping = number('damping', damping)
        self.towards_float = towards_float
        self.rounds = whole('rounds', rounds)
        self.inside = inside

    @torch.no_grad()
    def run(self, session: Session) -> None:
        units = session.graph.units
        if self.unit == 'layer':
            units = [Unit(n, (n,)) for n in session.graph.layers]
        before: set[str] = set()
        with (
            session.cache() as cache,
            frozen(session.model),
            session.stage('compensated rounding'),
        ):
            adapter = adapter_for(session.model, session.graph, False)
            images = Images(session, cache, adapter, [])
            for k, unit in enumerate(units):
                session.progress('rounding', unit.name, k, len(units))
                self._unit(session, images, unit, k, before)
                before |= set(unit.layers)

    def _unit(self, session, images, unit, k, before) -> None:
        view = UnitView(session.model, session.graph, unit)
        layers = {
            n: m
            for n, m in view.layers.items()
            if m.weight_quantizer is not None and not m.tied
        }
        if not layers:
            return
        moments = {n: PairedMoments(m) for n, m in layers.items()}
        acts = before | set(unit.layers)
        inner = acts if self.inside == 'nearest' else before
        for at, j in enumerate(images.everyone):
            if j not in images.mine:
                continue
            exact = _Tap(session, layers, self.rows, (k, j))
            with float_mode(session.model), exact.tapping(), view.stopping():
                images.run(j)
            rows = _Tap(session, layers, self.rows, (k, j))
            with (
                quantizing(session.layers, inner, acts),
                rows.tapping(True),
                view.stopping(),
            ):
                images.run(j)
            for name, ours in rows.found.items():
                for a, b in zip(ours, exact.found.get(name, []), strict=False):
                    if a.shape == b.shape:
                        moments[name].add(a, b, at % 2)
        for name, one in moments.items():
            one.merge()
            if one.count:
                found = round_layer(
                    layers[name],
                    one,
                    self.damping,
                    self.towards_float,
                    self.rounds,
                )
                print(name, one.count, found)
                del one._sums


class _Tap:
    """Takes rows at the same positions of every forward of an image."""

    def __init__(self, session, layers, count, key) -> None:
        self.layers = layers
        self.count = count
        self.key = key
        self.session = session
        self.found: dict[str, list[Tensor]] = {}
        self._steering: dict[str, tuple] = {}

    def tapping(self, quantized: bool = False) -> Any:
        return observing(self.layers, self._see, quantized=quantized)

    def _see(self, name: str, port: str, level: int, x: Tensor) -> None:
        found = self.found.setdefault(name, [])
        at = list(self.layers).index(name)
        rng = self.session.rng(*self.key, at, len(found))
        found.append(sample_rows(self.layers[name], x, self.count, rng))
