# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What each width of each unit does to the detector, on calibration images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ...calibration import Images, Prefix, Session, room_for_outputs
from ...errors import NumericError, QuantConfigError
from ...observers import fetch
from ...solvers import decreasing
from .bench import Bench, Slot
from .objectives import Distance
from .trials import Widths

Floats = npt.NDArray[np.float64]
#: a resume file is written after so many images
SAVED = 8
#: for the generator of random directions
PROBES = 0x70726F62


class Curves(NamedTuple):
    """Distances by the widths of units.

    Attributes:
        added (Floats): ``[U, K]``, what a unit at a width adds to ``base``;
            NaN where it does not have the width. Nowhere rising with the
            widths.
        base (float): Distance with all units as they were: 0 if they were
            float.
    """

    added: Floats
    base: float

    def of(self, choice: Sequence[int]) -> float:
        """Predicted distance of a choice of columns for each unit."""
        return self.base + float(self.added[range(len(choice)), choice].sum())


class Measuring:
    """Takes distances on the images of all ranks.

    Args:
        session (Session): The running quantization; its ``state`` holds
            under ``measured`` what was found of each image.
        images (Images): The images.
        count (int): How many of all ranks are looked at.
        distance (Distance): What is measured.
        bench (Bench): The operands, mounted.
        widths (Sequence[int]): All widths, rising: the K columns of curves.
        objective (str): Name of the distance, for messages.
    """

    def __init__(
        self,
        session: Session,
        images: Images,
        count: int,
        distance: Distance,
        bench: Bench,
        widths: Sequence[int],
        objective: str,
    ) -> None:
        self.session = session
        self.images = images
        self.count = count
        self.distance = distance
        self.bench = bench
        self.widths = list(widths)
        self.objective = objective
        self.found: dict[str, Tensor] = session.state.setdefault(
            'measured', {}
        )

    @property
    def slots(self) -> list[Slot]:
        """The operands on the bench."""
        return self.bench.slots

    def curves(
        self, key: str, now: Sequence[Widths], probes: int | None
    ) -> Curves:
        """Curves of all units, the others as they are.

        Args:
            key (str): Tells this measurement from others.
            now (Sequence[Widths]): Widths of all operands; the same for all
                units as a rule float.
            probes (int, optional): Random directions of an image, each of
                which takes a backward; None runs a forward for each unit
                and width instead.

        Raises:
            QuantConfigError: If nothing was measured for a layer.
            NumericError: If a curve has no finite number.
        """

        def one(j: int) -> Tensor:
            if probes is None:
                return self._by_forwards(j, now)
            return self._by_probes(j, now, probes)

        tables = self._each(key, one)
        self._check_heard(tables)
        mean = np.mean([t[:, 1:] for t in tables], 0)
        rest, last = mean[:-1], mean[-1]
        base = float(last[0])
        added = np.where(np.isfinite(rest), rest - base, np.nan)
        self._check_finite(added)
        return Curves(decreasing(added), base)

    def distances(self, key: str, widths: Sequence[Widths]) -> float:
        """Mean distance with all operands at some widths.

        Args:
            key (str): Tells this measurement from others.
            widths (Sequence[Widths]): Of all operands.
        """

        def one(j: int) -> Tensor:
            targets = self._targets(j)
            self.bench.set(widths)
            with torch.no_grad():
                found = self.distance(self._run(j), targets)
            return found[None].cpu()

        return float(np.mean(self._each(key, one)))

    def _each(self, key: str, one: Callable[[int], Tensor]) -> list[Floats]:
        """What a function gives of each image of all ranks, in order."""
        mine = [j for j in self.images.mine if j < self.count]
        for i, j in enumerate(mine):
            self.session.progress('bit allocation', key, i, len(mine))
            name = f'{key}/{j}'
            if name not in self.found:
                self.found[name] = one(j)
                if i % SAVED == SAVED - 1:
                    self.session.save()
        gathered: dict[int, Floats] = {}
        here = {j: self.found[f'{key}/{j}'].numpy() for j in mine}
        for part in all_gather_object(here):
            gathered |= part
        return [gathered[j] for j in sorted(gathered)]

    def _run(self, j: int) -> list[Any]:
        return self.distance.run(self.images, j)

    def _targets(self, j: int) -> list[dict[str, Tensor]]:
        """Constants of the float detector."""
        self.bench.reset()
        with torch.no_grad():
            found = self.distance.targets(self._run(j))
        for slot in self.slots:
            slot.heard = False
        return found

    def _by_probes(self, j: int, now: Sequence[Widths], probes: int) -> Tensor:
        """Mean squares of ``<v, r>``, to first order in what changes.

        With error e of the outputs as they are, and a change d of them by
        another width, ``E <v, e + d>^2 = |e + d|^2``.
        """
        targets = self._targets(j)
        changes = any(w is not None for one in now for w in one)
        self.bench.set(now)
        with torch.enable_grad():
            found = self.distance.residuals(self._run(j), targets)
            rng = self.session.rng(PROBES, j)
            total: list[Tensor] = []
            for k in range(probes):
                value = sum(
                    (r * torch.randn(r.shape, generator=rng, device=r.device))
                    .sum()
                    for r in found
                )  # fmt: skip
                if isinstance(value, Tensor) and value.requires_grad:
                    value.backward(retain_graph=k < probes - 1)
                error = value.detach().double() * changes  # type: ignore
                total = self._add(total, error)
        return self._table([t / probes for t in total])

    def _add(self, total: list[Tensor], error: Tensor) -> list[Tensor]:
        """Adds the squares of a probe, those of the error last."""
        parts = [(error + slot.collect()).square() for slot in self.slots]
        parts.append(error.square().reshape(1, 1))
        if not total:
            return parts
        return [a + b for a, b in zip(total, parts, strict=True)]

    def _by_forwards(self, j: int, now: Sequence[Widths]) -> Tensor:
        """A forward for each unit and width, from the last unit on."""
        targets = self._targets(j)
        room = room_for_outputs(
            self.images.cache.limit - self.images.cache.in_memory,
            self.session.device,
        )
        prefix = Prefix(self.session.layers, room)
        found: list[Tensor] = []
        self.bench.set(now)
        with torch.no_grad(), prefix.watching():

            def distance(changed: set[str]) -> Tensor:
                prefix.change(changed)
                outputs = prefix.run(j, lambda: self._run(j))
                return self.distance(outputs, targets)

            base = distance(set())
            before: set[str] = set()
            # what comes before a unit is as in the forward before
            for at in self._last_first():
                slot = self.slots[at]
                names = {name for name, _ in slot.trial.operand.holders}
                rows = []
                for unit in range(slot.trial.units):
                    row = []
                    for bits in slot.trial.operand.widths:
                        widths = list(now[at])
                        widths[unit] = bits
                        slot.set(widths)
                        row.append(distance(names | before))
                        before = set()
                    rows.append(torch.stack(row))
                slot.set(now[at])
                before = names
                found.append(torch.stack(rows))
        order = self._last_first()
        tables = [t for _, t in sorted(zip(order, found, strict=True),
                                       key=lambda pair: pair[0])]  # fmt: skip
        return self._table([*tables, base.reshape(1, 1)])

    def _last_first(self) -> list[int]:
        """Operands, those of the last layers first."""
        order = {n: i for i, n in enumerate(self.session.graph.layers)}

        def first(at: int) -> int:
            holders = self.slots[at].trial.operand.holders
            return min(order[name] for name, _ in holders)

        return sorted(range(len(self.slots)), key=first, reverse=True)

    def _table(self, parts: list[Tensor]) -> Tensor:
        """``[U + 1, 1 + K]`` on the CPU: whether it was heard, and squares.

        The last row is that of the base.
        """
        values = fetch(parts)
        units = sum(slot.trial.units for slot in self.slots)
        table = torch.full(
            (units + 1, 1 + len(self.widths)), torch.nan, dtype=torch.float64
        )
        at = 0
        for slot, value in zip(self.slots, values, strict=False):
            columns = [
                1 + self.widths.index(w) for w in slot.trial.operand.widths
            ]
            table[at : at + len(value), columns] = value
            table[at : at + len(value), 0] = float(slot.heard)
            at += len(value)
        table[-1, 0], table[-1, 1] = 1, values[-1].item()
        return table

    def _check_heard(self, tables: list[Floats]) -> None:
        heard = sum(t[:, 0] for t in tables)
        at, silent = 0, []
        for slot in self.slots:
            if not heard[at]:
                silent.append(slot.trial.operand.name)
            at += slot.trial.units
        if silent:
            raise QuantConfigError(
                'AllocateBits: nothing was measured for '
                f'{", ".join(silent[:8])}'
                + (f' and {len(silent) - 8} others' * (len(silent) > 8))
                + f': the objective {self.objective!r} does not depend on '
                'them; leave them out by scope, or take another objective'
            )

    def _check_finite(self, added: Floats) -> None:
        at = 0
        for slot in self.slots:
            for row in added[at : at + slot.trial.units]:
                if not np.isfinite(row).any():
                    raise NumericError(
                        f'AllocateBits: {slot.trial.operand.name}: what it '
                        'does to the detector is NaN or Inf at every width; '
                        'leave it out by scope'
                    )
            at += slot.trial.units
