# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that gives input channels grids of their own."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from ...calibration import Session
from ...checks import number, whole
from ...layers import QuantLayer
from ...records import Record, ScaledInputsRecord
from ...registry import PASSES
from ...structures import Port, Scaling
from ...surgery import ScaledInput, can_shift
from ..base import BasePass
from .free import divide_maker, find_free
from .grids import Channels, Levels, channel_ranges, output_error
from .rows import Rows, levels_of, may_scale, sample_rows


@PASSES.register_module()
class ScaleInputs(BasePass):
    """Gives each input channel of a layer its own grid, where that helps.

    A layer then takes ``x' = x / f - b`` instead of x, with a factor and a
    shift of each channel, and its weight and bias make up for it, so that
    the float layer gives the same as before. One grid for x' is a grid for
    each channel of x (the scale reparametrization of RepQ-ViT, Li et al.,
    2023, for any layer). Where the graph shows that what makes the tensor
    can be divided by f instead, and that nothing else reads it, that is
    done, and costs nothing. Elsewhere the layer divides and subtracts
    itself, one multiplication and addition an element.

    Of each tensor, strengths are tried on rows of the calibration images:
    ranges are made for one half of the images and the error of the layers'
    outputs is taken on the other, both ways. A tensor keeps its one grid
    unless the error falls. Layers that read the same tensor are treated
    alike. Layers with groups, or with a weight that others have too, and
    inputs whose quantizer has several ranges already, stay as they are.

    Args:
        rows (int): Most rows of a call, of an image. Defaults to 64.
        strengths (Sequence[float]): Shares, on a logarithmic scale, to
            which widths of channels are made equal. Defaults to (0.5, 1).
        shift (bool): Whether channels are shifted too, where a bias can
            make up for it. Defaults to True.
        gain (float): Share by which the error has to fall. Defaults to
            0.05.
        p (float): Exponent of the ranges' error. Defaults to 2.4.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'folded'})
    gives: ClassVar[frozenset[str]] = frozenset({'equalized', 'scaled'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'scaled', 'observers', 'ranges', 'learned'}
    )

    def __init__(
        self,
        rows: int = 64,
        strengths: Sequence[float] = (0.5, 1.0),
        shift: bool = True,
        gain: float = 0.05,
        p: float = 2.4,
    ) -> None:
        self.rows = whole('rows', rows, 1)
        self.strengths = [number('strengths', s, 0, 1) for s in strengths]
        if not self.strengths:
            raise ValueError('strengths is empty: nothing would be tried')
        self.shift = shift
        self.gain = number('gain', gain, 0, 1)
        self.p = number('p', p, above=True)

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        groups = [g for g in session.plan.groups if may_scale(session, g)]
        if not groups:
            session.notes.append(
                'ScaleInputs: no input has one grid for all channels'
            )
            return
        if session.feed.total < 2:
            session.notes.append(
                'ScaleInputs: inputs keep one grid: what one half of the '
                'calibration images finds is tried on the other, and there '
                'is only one; give two or more'
            )
            return
        scalings, _ = session.graph.find_scalings()
        with session.stage('input channels'):
            names = {group[0][0] for group in groups}
            seen = sample_rows(session, names, self.rows)
            unreached = []
            for i, group in enumerate(groups):
                session.progress('input channels', group[0][0], i, len(groups))
                if not self._group(session, group, seen, scalings):
                    unreached.append(group[0][0])
        if unreached:
            session.notes.append(
                'ScaleInputs: inputs keep one grid, as half of the '
                'calibration images do not reach them: ' + ', '.join(unreached)
            )
        session.notes.append(_summary(session.records))

    def _group(
        self,
        session: Session,
        group: list[Port],
        seen: Rows,
        scalings: list[Scaling],
    ) -> bool:
        """Decides on one tensor; whether there were rows of both halves."""
        name, port = group[0]
        layers = [session.layers[n] for n, _ in group]
        act = layers[0].act_quantizers[port]
        halves = [
            levels_of(seen, name, half, act.per_level, session.device)
            for half in (0, 1)
        ]
        if not halves[0] or len(halves[0]) != len(halves[1]):
            return False
        free = find_free(session.layers, scalings, {n for n, _ in group})
        shiftable = self.shift and not free and all(map(can_shift, layers))
        errors = self._errors(layers, halves, (False, True)[: 1 + shiftable])
        best = min(errors, key=errors.__getitem__)
        if not errors[best] < (1 - self.gain) * errors[None]:
            best = None
        strength, shifted = best or (0.0, False)
        session.records.append(
            ScaledInputsRecord(
                name,
                [n for n, _ in group],
                errors[best] / (errors[None] or 1.0),
                strength,
                shifted,
                best is not None and free is not None,
            )
        )
        if best is None:
            return True
        everything = [torch.cat(p) for p in zip(*halves, strict=True)]
        found = channel_ranges(everything, act.bits, self.p, shifted)
        channels = found.scaling(strength, shifted)
        if free is not None:
            divide_maker(session.model, free, name, channels.factors)
            return True
        for n, _ in group:
            session.edit(ScaledInput.by(n, channels.factors, channels.shift))
        return True

    def _errors(
        self,
        layers: list[QuantLayer],
        halves: list[Levels],
        shifts: tuple[bool, ...],
    ) -> dict[tuple[float, bool] | None, float]:
        """Held-out errors of one grid, and of each strength and shift."""
        act = layers[0].act_quantizers['input']
        found: dict[tuple[float, bool] | None, float] = {}
        for fit, held in (halves, halves[::-1]):
            tried: dict[tuple[float, bool] | None, Channels | None]
            tried = {None: None}
            for shifted in shifts:
                ranges = channel_ranges(fit, act.bits, self.p, shifted)
                for strength in self.strengths:
                    key = strength, shifted
                    tried[key] = ranges.scaling(*key)
            for key, scaling in tried.items():
                error = output_error(layers, act, fit, held, scaling, self.p)
                found[key] = found.get(key, 0.0) + error
        return found


def _summary(records: list[Record]) -> str:
    tried = [r for r in records if isinstance(r, ScaledInputsRecord)]
    scaled = [r for r in tried if r.strength or r.shifted]
    free = sum(r.free for r in scaled)
    return (
        f'ScaleInputs: {len(scaled)} of {len(tried)} inputs have a grid for '
        f'each channel, {free} of them at no cost'
    )
