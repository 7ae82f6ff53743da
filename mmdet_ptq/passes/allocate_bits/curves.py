# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What each width of each unit does to the detector, on calibration images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...calibration import Images, Session, of_all_images
from ...errors import NumericError
from ...observers import fetch
from ...solvers import decreasing
from .bench import Bench, Slot
from .objectives import Distance, refuse_silent
from .tables import by_forwards, by_probes
from .trial_quantizers import Widths

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
            targets = self._targets(j)
            self.bench.set(now)
            if probes is None:
                cache = self.images.cache
                room = cache.limit - cache.in_memory
                return self._table(by_forwards(self, j, targets, now, room))
            rng = self.session.rng(PROBES, j)
            return self._table(by_probes(self, j, targets, probes, rng))

        # of forwards there may be thousands for an image
        tables = self._each(key, one, 1 if probes is None else SAVED)
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
                found = self.distance(self.run(j), targets)
            return found[None].cpu()

        return float(np.mean(self._each(key, one)))

    def _each(
        self, key: str, one: Callable[[int], Tensor], every: int = SAVED
    ) -> list[Floats]:
        """What a function gives of each image of all ranks, in order."""
        mine = [j for j in self.images.mine if j < self.count]
        for i, j in enumerate(mine):
            self.session.progress('bit allocation', key, i, len(mine))
            name = f'{key}/{j}'
            if name not in self.found:
                self.found[name] = one(j)
                if i % every == every - 1:
                    self.session.save()
        return of_all_images(
            {j: self.found[f'{key}/{j}'].numpy() for j in mine}
        )

    def run(self, j: int) -> list[Any]:
        """What the detector, as it is now, gives on image ``j``."""
        return self.distance.run(self.images, j)

    def _targets(self, j: int) -> list[dict[str, Tensor]]:
        """Constants of the float detector."""
        self.bench.reset()
        with torch.no_grad():
            found = self.distance.targets(self.run(j))
        for slot in self.slots:
            slot.heard = False
        return found

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
        refuse_silent(silent, self.objective)

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
