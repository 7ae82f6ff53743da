# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that rounds weights so that their errors make up for each other."""

from functools import partial
from typing import ClassVar

import torch

from ...calibration import (
    Images,
    Session,
    UnitView,
    frozen,
)
from ...checks import number, one_of, whole
from ...detectors import adapter_for
from ...errors import NumericError
from ...layers import QuantLayer, quantizing
from ...quantizers import PlacesValues, Rescales
from ...records import RoundingRecord
from ...registry import PASSES
from ...structures import Unit
from ..base import BasePass
from ..reconstruct.progress import export, resume
from .layer import Found, round_layer
from .moments import PairedMoments, Product
from .taps import Forwards

UNITS = ('block', 'layer')


@PASSES.register_module()
class CompensateRounding(BasePass):
    """Rounds weights so that errors of one column make up for another's.

    GPTQ (Frantar et al., 2023) carried to detectors. Units are visited in
    execution order. Of a layer's inputs behind the layers that are rounded
    already, rows are sampled and their second moments kept. Columns of the
    weight are rounded in order of their energy, and what each error does to
    the output is pushed into the columns to come. The bias then takes what
    is left of the mean. Every layer ends at least as near to its aim as with
    the nearest values. Nothing is learned: each unit takes a part of one
    forward of each image, and what the modules before it give is kept: within
    ``calibration.cache`` in memory, beyond it on disk.

    Weights need a quantizer with a grid, of any kind; layers that share a
    weight or a bias keep the nearest values.

    Args:
        unit (str): ``'block'``: layers of a residual or transformer block do
            not see each other's rounding; ``'layer'``: they do, at more
            forwards.
        rows (int): Most rows of a call, of an image. Defaults to 256.
        damping (float): Share of the mean second moment that is added to
            all, so that what few rows say is not believed. Ten times as much
            is tried where the factorization fails. Defaults to 0.01.
        towards_float (bool): Whether a layer aims at what it gives in the
            float detector, and so makes up for the errors of the layers
            before it (GPTAQ, Li et al., 2025) as far as a half of the images
            confirms what the other half says; else at what the float weight
            makes of its inputs. Defaults to True.
        rounds (int): How often all columns are visited once more, each
            moved to what is best with the others. Defaults to 1.
        refits (int): How often the steps of the weights are fitted anew to
            the codes that were found, and the columns are visited again; of
            quantizers whose values can be multiplied or moved, and where
            all columns of a channel share a grid. Others keep their steps,
            and a note says so. Defaults to 0.
        columns (int): Most columns that are looked at together; they take
            about 80 times their square of bytes (1.6 GiB for the default). A
            weight with more is parted into blocks that do not make up for
            each other. Defaults to 4608.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

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
        refits: int = 0,
        columns: int = 4608,
    ) -> None:
        self.unit = one_of('unit', unit, UNITS)
        self.rows = whole('rows', rows, 1)
        self.damping = number('damping', damping, 0)
        self.towards_float = towards_float
        self.rounds = whole('rounds', rounds)
        self.refits = whole('refits', refits)
        self.columns = whole('columns', columns, 1)

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`; can be resumed after each unit."""
        units = self._units(session)
        done = resume(session)
        before = {n for unit in units[:done] for n in unit.layers}
        with (
            session.resumable(partial(export, session)),
            session.cache() as cache,
            frozen(session.model),
            session.stage('compensated rounding'),
        ):
            adapter = adapter_for(session.model, session.graph, False)
            images = Images(session, cache, adapter, [])
            forwards = Forwards(session, images, units, self.rows)
            if self.towards_float:
                self._keep_exact(session, forwards, units[done:])
            with forwards.watching():
                for k, unit in enumerate(units[done:], done):
                    session.progress('rounding', unit.name, k, len(units))
                    self._unit(session, forwards, unit, before)
                    before |= set(unit.layers)
                    session.state['units'] = k + 1
                    session.save()
            for why, names in session.state.get('kept_steps', {}).items():
                session.notes.append(
                    f'CompensateRounding: the steps of {len(names)} weights '
                    f'stay as they are (refits), as {why}: {", ".join(names)}'
                )

    def _units(self, session: Session) -> list[Unit]:
        if self.unit == 'layer':
            return [Unit(n, (n,)) for n in session.graph.layers]
        return session.graph.units

    def _keep_exact(
        self, session: Session, forwards: Forwards, units: list[Unit]
    ) -> None:
        names = {n for unit in units for n in unit.layers}
        layers = _rounded_layers(session, names)
        forwards.keep_exact(
            layers, {n: Product(m, self.columns) for n, m in layers.items()}
        )

    def _unit(
        self,
        session: Session,
        forwards: Forwards,
        unit: Unit,
        before: set[str],
    ) -> None:
        # their inputs are quantized from here on, later their weights too
        forwards.change(unit.layers)
        layers = _rounded_layers(session, set(unit.layers))
        if not layers:
            return
        view = UnitView(session.model, session.graph, unit)
        moments = {
            n: PairedMoments(Product(m, self.columns))
            for n, m in layers.items()
        }
        acts = before | set(unit.layers)
        with quantizing(session.layers, before, acts):
            for j, name, x, y in forwards.rows(layers, view):
                # halves by number: the same on any number of ranks
                moments[name].add(x, y, j % 2)
        for name in list(layers):
            self._layer(session, name, layers[name], moments.pop(name))
        forwards.change(unit.layers)

    def _layer(
        self,
        session: Session,
        name: str,
        layer: QuantLayer,
        moments: PairedMoments,
    ) -> None:
        moments.merge()
        if not moments.count:
            session.notes.append(
                f'{name}: no calibration image reached it, so its weight has '
                'the nearest values'
            )
            return
        if not moments.finite:
            raise NumericError(
                f'{name}: its input or output holds NaN or Inf on a '
                'calibration image, behind the layers that are rounded '
                f"already; leave it float: dict(match='{name}', skip=True)"
            )
        found = round_layer(
            layer,
            moments,
            self.damping,
            self.towards_float,
            self.rounds,
            self.refits,
        )
        if self.refits and not found.refitted:
            kind = type(layer.weight_quantizer)
            why = f'the values of a {kind.__name__} cannot be multiplied'
            if issubclass(kind, PlacesValues | Rescales):
                why = 'their columns are of several groups'
            kept = session.state.setdefault('kept_steps', {})
            kept.setdefault(why, []).append(name)
        session.notes += self._notes(name, moments, found)
        session.records.append(
            RoundingRecord(
                name,
                found.before,
                found.after,
                found.damping,
                found.share,
                moments.count,
                found.dead,
            )
        )

    def _notes(
        self, name: str, moments: PairedMoments, found: Found
    ) -> list[str]:
        notes, product = [], moments.product
        groups, _, columns = product.weight.shape
        if found.dead == groups * columns:
            notes.append(
                f'{name}: its inputs say nothing, as they are the same on all '
                'calibration images, so its weight has the nearest values'
            )
        if found.damping > self.damping:
            notes.append(
                f'{name}: damping had to grow from {self.damping:g} to '
                f'{found.damping:g}: its inputs depend on each other'
            )
        if product.blocks > 1:
            notes.append(
                f'{name}: rounded in {product.blocks} blocks of columns that '
                'do not make up for each other (CompensateRounding.columns)'
            )
        return notes


def _rounded_layers(
    session: Session, names: set[str]
) -> dict[str, QuantLayer]:
    """Those of some layers whose weight is quantized and its own."""
    return {
        n: m
        for n, m in session.layers.items()
        if n in names and m.weight_quantizer is not None and not m.tied
    }
