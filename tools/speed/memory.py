# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Memory that a reconstruction takes while its cache is too small."""

import os
import re
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Sample, Session
from mmdet_ptq.records import Record
from mmdet_ptq.registry import PASSES
from mmdet_ptq.structures import Unit
from mmdet_ptq.testing import (
    noise_batches,
    random_detector,
    settle_batch_norms,
)
from tools.speed.steps import ChosenVisit, ReconstructChosen, chosen

MIB = 2**20
BESIDE = 'beside '
FEW = 2
"""Images of the run that is compared with: one to learn from, one to test."""


def anonymous(status: str) -> int:
    """Bytes of ``RssAnon`` in the text of ``/proc/PID/status``.

    Resident memory without mapped files: pages of the cache's file are the
    system's, which takes them back when it needs them.

    Args:
        status (str): The text.

    Returns:
        int: Bytes.

    Raises:
        RuntimeError: If it is not there (Linux has it since 4.5).
    """
    found = re.search(r'^RssAnon:\s+(\d+) kB$', status, re.MULTILINE)
    if found is None:
        raise RuntimeError(
            'no RssAnon in /proc/self/status: memory can be measured on '
            'Linux only; leave it out with --no-memory'
        )
    return int(found[1]) * 1024


class Peak:
    """Samples numbers in a thread and keeps their maxima.

    A peak shorter than the interval can be missed.

    Args:
        read (Callable): Gives the numbers by name.
        interval (float): Seconds between samples.

    Attributes:
        top (dict[str, int]): The maxima.
    """

    def __init__(
        self, read: Callable[[], dict[str, int]], interval: float = 0.002
    ) -> None:
        self.read = read
        self.interval = interval
        self.top: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> 'Peak':
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            self.sample()

    def sample(self) -> None:
        """Reads the numbers once."""
        for name, value in self.read().items():
            self.top[name] = max(self.top.get(name, 0), value)


@dataclass(frozen=True)
class MemoryRecord(Record):
    """Memory that a pass took.

    Attributes:
        top (dict[str, int]): Peaks, in bytes; see :func:`peak_of`.
    """

    top: dict[str, int]


class WatchedVisit(ChosenVisit):
    """Says which of the chosen units it is at."""

    def __call__(self, k: int, samples: dict[int, Sample] | None) -> None:
        """Reconstructs unit ``k`` if the pass has chosen it."""
        if self.units[k].name in self.settings.pick(self.units):
            self.settings.at = self.units[k].name
        super().__call__(k, samples)


def watched(units: list[Unit]) -> tuple[str, ...]:
    """The second unit, which has the largest output, and those timed."""
    return units[1].name, *chosen(units)


@PASSES.register_module()
class WatchedReconstruct(ReconstructChosen):
    """Samples memory while some units are reconstructed.

    Attributes:
        at (str): What is running.
    """

    visit = WatchedVisit
    pick = staticmethod(watched)
    at = 'the float model'

    def run(self, session: Session) -> None:
        """Adds a :class:`MemoryRecord`."""

        def read() -> dict[str, int]:
            caches = list(session.caches)
            held = sum(one.in_memory for one in caches)
            everything = anonymous(Path('/proc/self/status').read_text())
            return {
                'held': held,
                'cached': held + sum(one.on_disk for one in caches),
                'sample': max((one.step for one in caches), default=0),
                f'{BESIDE}{self.at}': everything - held,
            }

        with Peak(read) as peak:
            super().run(session)
        session.records.append(MemoryRecord('all', peak.top))


def peak_of(
    config: str,
    size: int,
    images: int,
    used: int,
    quant_cfg: dict,
    threads: int,
) -> dict[str, int]:
    """Peaks inside the reconstruction pass; for a process of its own.

    Args:
        config (str): A config of a RetinaNet.
        size (int): Height and width of the images, pixels.
        images (int): How many are held in memory, as a caller would.
        used (int): With how many of them is calibrated.
        quant_cfg (dict): With a ``WatchedReconstruct``; its number of
            images is replaced.
        threads (int): Of torch.

    Returns:
        dict[str, int]: Peaks, in bytes, of what the cache ``held`` in
        memory, of what it had in all (``cached``), the largest ``sample``,
        which is what a step reads at once, and for each unit, after
        ``'beside '``, of anonymous memory that the cache did not hold.
    """
    warnings.filterwarnings('ignore')
    torch.set_num_threads(threads)
    model = random_detector(config)
    data = noise_batches(images, (size, size))
    settle_batch_norms(model, data[:FEW])
    quant_cfg = dict(quant_cfg)
    quant_cfg['calibration'] = dict(quant_cfg['calibration'], num_samples=used)
    records = quantize_detector(model, data, quant_cfg).records
    return next(r.top for r in records if isinstance(r, MemoryRecord))


def in_child(*args: Any) -> dict[str, int]:
    """:func:`peak_of` in a new process.

    There, freed memory goes back to the system at once. By default malloc
    keeps it, and a cache that grows into what calibration left behind would
    seem to cost nothing.
    """
    with (
        mock.patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536'),
        ProcessPoolExecutor(1, get_context('spawn')) as pool,
    ):
        return pool.submit(peak_of, *args).result()


def growth(many: dict[str, int], few: dict[str, int], bound: int) -> dict:
    """Memory that more images cost, against the bound.

    What is beside the cache with a few images is the model and the
    network's own tensors in a step. With many images more may be beside it:
    the sample that is being read from the file, and whatever should not be.
    The most of this among the units, and the cache in memory, count.

    Args:
        many (dict[str, int]): :func:`peak_of` many images.
        few (dict[str, int]): :func:`peak_of` :data:`FEW` images.
        bound (int): Bytes of the cache.

    Returns:
        dict: ``over_bound`` and the numbers it comes from, in MiB.
    """
    beside = {
        name.removeprefix(BESIDE): many[name] - few[name]
        for name in many
        if name.startswith(BESIDE)
    }
    return dict(
        over_bound=round((many['held'] + max(beside.values())) / bound, 3),
        held_mib=_mib(many['held']),
        beside_mib={unit: _mib(size) for unit, size in beside.items()},
        bound_mib=_mib(bound),
        cached_mib=_mib(many['cached']),
        sample_mib=_mib(many['sample']),
    )


def _mib(size: int) -> float:
    return round(size / MIB, 1)
