# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How far a reconstruction is, and how long it will take."""

import resource
import time
from collections.abc import Sequence

import torch
from mmengine.logging import print_log

from ...calibration import Session

#: steps that are timed, after one that warms up
TIMED = 10
#: seconds from which a run is long
LONG = 60


class Pace:
    """Tells the progress of each step and, of a long run, the time it takes.

    Args:
        session (Session): The running quantization.
        units (Sequence[str]): Names of all units, in order.
        iters (int): Steps of each.
    """

    def __init__(
        self, session: Session, units: Sequence[str], iters: int
    ) -> None:
        self.session = session
        self.units = units
        self.iters = iters
        self._began = 0.0
        self._warm = 0.0
        self._told = False

    def unit(self, k: int) -> None:
        """Unit ``k`` begins: what it sees is gathered next."""
        self._began = time.perf_counter()
        self._progress(k, 0)

    def step(self, k: int, it: int) -> None:
        """Step ``it`` of unit ``k`` begins."""
        self._progress(k, it)
        if self._told:
            return
        if it == 1:
            self._warm = self._now()
        if it == TIMED + 1:
            self._told = True
            self._tell(k, (self._now() - self._warm) / TIMED)

    def _now(self) -> float:
        """The time at which all steps so far have ended, also on a GPU."""
        if self.session.device.type == 'cuda':
            torch.cuda.synchronize(self.session.device)
        return time.perf_counter()

    def _progress(self, k: int, it: int) -> None:
        self.session.progress(
            'reconstruction',
            self.units[k],
            k + it / self.iters,
            len(self.units),
        )

    def _tell(self, k: int, step: float) -> None:
        """One line, if the units from ``k`` on will take long."""
        count = len(self.units) - k
        before = self._warm - self._began
        total = count * (before + step * self.iters)
        if total < LONG:
            return
        cache = self.session.config.calibration.cache
        print_log(
            f'reconstruction: about {duration(total)} for {count} units of '
            f'{self.iters} steps, if all are like {self.units[k]} '
            f'({step * 1e3:.3g} ms a step); '
            f'{peak_memory(self.session.device) / 2**30:.1f} GiB of memory '
            f'so far, calibration.cache={cache!r} bounds the activations',
            'current',
        )


def duration(seconds: float) -> str:
    """Seconds as a person says them: ``'50 s'``, ``'12 min'``, ``'3.5 h'``."""
    if seconds < 100:
        return f'{seconds:.0f} s'
    if seconds < 100 * 60:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most, on the device of the model."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
