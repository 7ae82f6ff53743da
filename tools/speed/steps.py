# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Times single steps of a reconstruction, beside what they must cost."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmdet_ptq.calibration import Sample
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct import Reconstruct
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.passes.reconstruct.visit import Visit
from mmdet_ptq.records import UnitRecord
from mmdet_ptq.registry import PASSES
from mmdet_ptq.structures import Unit
from tools.speed.suffix import suffix

VARIANTS = ('step', 'whole', 'float', 'quantized')
"""The step; the same with the prefix recomputed; the unit and what comes
after it, forward and backward and nothing else, with the unit float and
quantized."""

CLOCKS = {'wall': time.perf_counter, 'CPU': time.process_time}


def clock_of(device: str) -> str:
    """Which of :data:`CLOCKS` times steps.

    What one thread computes is timed by what the process was given of a
    core: that does not count other jobs on the machine.

    Args:
        device (str): ``'cpu'`` or ``'cuda'``.

    Returns:
        str: ``'CPU'`` for one thread on the CPU, else ``'wall'``.
    """
    alone = device == 'cpu' and torch.get_num_threads() == 1
    return 'CPU' if alone else 'wall'


def chosen(units: list[Unit]) -> tuple[str, str]:
    """Names of the last block of the backbone and of the first head layer.

    Args:
        units (list[Unit]): In execution order.

    Returns:
        tuple[str, str]: E.g. ``backbone.layer4.2``,
        ``bbox_head.cls_convs.0.conv``.
    """
    names = [unit.name for unit in units]
    return (
        [n for n in names if n.startswith('backbone.')][-1],
        next(n for n in names if n.startswith('bbox_head.')),
    )


class ChosenVisit(Visit):
    """Reconstructs the chosen units and passes over the others."""

    def __call__(self, k: int, samples: dict[int, Sample] | None) -> None:
        """Reconstructs unit ``k`` if the pass has chosen it."""
        if self.units[k].name in self.settings.pick(self.units):
            super().__call__(k, samples)


class ReconstructChosen(Reconstruct):
    """Visits some units only.

    The others stay as the passes before left them, so the units before a
    chosen one are quantized.

    Attributes:
        pick (Callable): Gives the names of the chosen units.
    """

    visit = ChosenVisit
    pick: ClassVar[Callable[[list[Unit]], Sequence[str]]] = staticmethod(
        chosen
    )


def pull(outputs: list[Tensor], to: list[Tensor]) -> None:
    """Backward of the plain sum of some maps.

    Args:
        outputs (list[Tensor]): The maps.
        to (list[Tensor]): What is differentiated for; keeps no gradient.
    """
    total = sum(t.sum() for t in outputs)
    torch.autograd.grad(total, to, allow_unused=True)


@dataclass(frozen=True)
class TimedRecord(UnitRecord):
    """The reconstruction of one unit, timed.

    Attributes:
        times (dict[str, list[float]]): Of :class:`TimedTrainer`.
    """

    times: dict[str, list[float]] = field(default_factory=dict)


class TimedTrainer(Trainer):
    """Fits a unit as :class:`Trainer` does, and times other runs between.

    The loop is the trainer's own. In each step the variants run one after
    the other, each time another one first, so that a machine whose speed
    drifts favours none.

    Attributes:
        times (dict[str, list[float]]): Seconds of each variant, and of the
            ``optimizer``: of everything between two steps.
    """

    def learn(
        self, learners: list[Any], acts: list[Any], train: list[int], k: int
    ) -> tuple[list[float], str]:
        """Notes what is learned, for the backward of the plain runs."""
        self.times = {name: [] for name in (*VARIANTS, 'optimizer')}
        self._learned: list[Tensor] = []
        self._suffixes: dict[int, Callable[[], list[Tensor]]] = {}
        self._left = 0.0
        for one in learners:
            one.start = self._noting(one.start)
        return super().learn(learners, acts, train, k)

    def fit(self, learners: list[Any], acts: list[Any], k: int) -> TimedRecord:
        """As the trainer's; the record has the times as well."""
        record = super().fit(learners, acts, k)
        return TimedRecord(**vars(record), times=self.times)

    def _noting(self, start: Callable) -> Callable:
        def noting(*args: Any) -> list[dict]:
            groups = start(*args)
            for group in groups:
                self._learned += group['params']
            return groups

        return noting

    def step(
        self,
        learners: list[Any],
        batch: list[int],
        progress: float,
        k: int,
        it: int,
    ) -> Tensor:
        """One step, and the same work in other ways."""
        if it:
            self.times['optimizer'].append(self._now() - self._left)
        (j,) = batch
        if j not in self._suffixes:
            self._suffixes[j] = suffix(
                self.images.model, self.view.name, lambda: self.images.run(j)
            )
        step = partial(super().step, learners, batch, progress, k, it)
        jobs = dict(
            step=step,
            whole=partial(self._whole, step, j),
            float=partial(self._float, j),
            quantized=partial(self._quantized, j),
        )
        for i in range(len(VARIANTS)):
            name = VARIANTS[(it + i) % len(VARIANTS)]
            start = self._now()
            found = jobs[name]()
            self.times[name].append(self._now() - start)
            if name == 'step':
                value = found
        self._left = self._now()
        return value

    def _whole(self, step: Callable[[], Tensor], j: int) -> None:
        """The step, nothing replayed; leaves no gradients."""
        sample = self.samples[j]
        stored, sample.replay = sample.replay, {}
        grads = [p.grad for p in self._learned]
        for p in self._learned:
            p.grad = None
        step()
        for p, grad in zip(self._learned, grads, strict=True):
            p.grad = grad
        sample.replay = stored

    def _float(self, j: int) -> None:
        weights = [
            m.weight for m in self.view.layers.values() if m.weight is not None
        ]
        with torch.enable_grad(), float_mode(self.images.model):
            for weight in weights:
                weight.requires_grad_(True)
            pull(self._suffixes[j](), weights)
        for weight in weights:
            weight.requires_grad_(False)

    def _quantized(self, j: int) -> None:
        with torch.enable_grad():
            pull(self._suffixes[j](), self._learned)

    def _now(self) -> float:
        device = self.session.device.type
        if device == 'cuda':
            torch.cuda.synchronize()
        return CLOCKS[clock_of(device)]()


@PASSES.register_module()
class TimedReconstruct(ReconstructChosen):
    """Times the steps of the chosen units."""

    trainer = TimedTrainer


def summarize(times: dict[str, list[float]]) -> dict[str, float]:
    """Ratios of one unit, each a median over the steps.

    The first step warms up; the last one's optimizer is not seen. Seconds
    are medians too.

    Args:
        times (dict[str, list[float]]): Of :class:`TimedTrainer`.

    Returns:
        dict[str, float]: ``over_float`` and ``over_quantized``: a step over
        forward and backward of the unit and the float network after it,
        with the unit float or quantized; ``without_replay``: a step whose
        prefix is recomputed over a step; seconds of all; ``steps``.
    """
    tails = times['optimizer'][1:]
    last = len(tails) + 1
    times = {name: times[name][1:last] for name in VARIANTS}
    for name in ('step', 'whole'):
        times[name] = [
            t + tail for t, tail in zip(times[name], tails, strict=True)
        ]
    found = dict(
        over_float=_ratio(times['step'], times['float']),
        over_quantized=_ratio(times['step'], times['quantized']),
        without_replay=_ratio(times['whole'], times['step']),
    )
    seconds = dict(times, optimizer=tails)
    found |= {
        f'{name}_s': round(statistics.median(t), 4)
        for name, t in seconds.items()
    }
    return dict(found, steps=len(tails))


def _ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios of neighbours."""
    return round(
        statistics.median(a / b for a, b in zip(above, below, strict=True)),
        3,
    )
