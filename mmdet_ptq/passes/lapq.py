# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""LAPQ: one exponent, then all ranges at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ..calibration import Session
from ..checks import number, whole
from ..quantizers import HasRange
from ..records import RangeRecord
from ..registry import PASSES
from .powell import Powell
from .task_loss import (
    TASK_LOSS,
    TaskLoss,
    TaskPass,
    check_exponents,
    set_exponent,
)


@PASSES.register_module()
class LAPQ(TaskPass):
    """Loss-aware ranges (Nahshan et al., 2021).

    First one exponent for all ranges: losses at ``exponents`` are fitted by
    a parabola, whose vertex is taken. Then Powell's method, over a factor
    for each range, weights and activations together. The best that was seen
    is kept.

    Args:
        exponents (Sequence[float]): Exponents, at least three. Defaults to
            ten from 2 to 4.
        powell_iters (int): Most rounds of Powell's method; 0 leaves it out.
            A round that gains less than a thousandth is the last. Defaults
            to 1.
        evaluations (int): Most evaluations of the loss in Powell's method.
            A line search gets 2 to 8 of them, so that every range has its
            turn. Defaults to 1000.
        width (float): How far a factor may go from 1. Defaults to 0.3.
        images (int): How many calibration images the loss is taken on, of
            each rank. Defaults to 8.
        loss (dict): Loss on the detector's outputs. Defaults to
            ``dict(type='DetectionLoss')``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        exponents: Sequence[float] = tuple(np.linspace(2, 4, 10).tolist()),
        powell_iters: int = 1,
        evaluations: int = 1000,
        width: float = 0.3,
        images: int = 8,
        loss: dict = TASK_LOSS,
    ) -> None:
        super().__init__(images, loss)
        self.exponents = check_exponents(exponents, 3)
        self.powell_iters = whole('powell_iters', powell_iters)
        self.evaluations = whole('evaluations', evaluations, 1)
        self.width = number('width', width, 0, 1, above=True)
        if width == 1:
            raise ValueError('width must be below 1, got 1')

    def choose(self, session: Session, task: TaskLoss) -> None:
        """See :meth:`TaskPass.choose`."""
        names = list(session.graph.layers)
        total = len(self.exponents) + 1
        tried: dict[float, float] = {}
        losses: list[float] = []

        def attempt(p: float) -> None:
            session.progress('exponents', f'{p:.2f}', len(losses), total)
            set_exponent(session, names, p)
            tried[p] = task(set(names))
            losses.append(tried[p])

        for p in self.exponents:
            attempt(p)
        attempt(vertex(self.exponents, losses))
        best = min(tried, key=tried.__getitem__)
        set_exponent(session, names, best)
        after, spent = tried[best], total
        if self.powell_iters:
            with weights_once(session):
                search = self._powell(session, task, set(names))
            after, spent = search.value, spent + search.evaluations + 1
        record = RangeRecord('all', best, tried[best], after, spent)
        session.records.append(record)

    def _powell(
        self, session: Session, task: TaskLoss, names: set[str]
    ) -> Powell:
        """Moves every range by a factor of its own."""
        ranges = Ranges(session)
        first = task(names)
        best = [first, task.values]
        budget = self.evaluations

        def loss(factors: np.ndarray) -> float:
            session.progress('powell', '', search.evaluations - 1, budget)
            found = task(names, ranges.stretch(factors), best[1])
            if found < best[0]:
                best[:] = found, task.values
            return found

        start = np.ones(len(ranges.quantizers))
        search = Powell(loss, start, first, self.width, budget)
        search.run(self.powell_iters)
        ranges.stretch(search.point)
        return search


class Ranges:
    """All ranges of weights and activations, each with a factor.

    Args:
        session (Session): The running quantization.

    Attributes:
        quantizers (list[HasRange]): Each that has a range, once.
    """

    def __init__(self, session: Session) -> None:
        self._layers = session.layers
        self._means = session.stats.means
        self._readers: dict[int, set[str]] = {}
        found: dict[int, HasRange] = {}
        for name, layer in self._layers.items():
            for q in (layer.weight_quantizer, *layer.act_quantizers.values()):
                if isinstance(q, HasRange) and q.initialized:
                    found[id(q)] = q
                    self._readers.setdefault(id(q), set()).add(name)
        self.quantizers = list(found.values())
        # a range is checked where it is set: on the CPU, so that a GPU is
        # not waited for
        self._ends = [
            tuple(end.cpu() for end in q.range()) for q in self.quantizers
        ]
        self._now = np.ones(len(self.quantizers))

    def stretch(self, factors: np.ndarray) -> set[str]:
        """Multiplies the ranges at the start by these.

        Args:
            factors (np.ndarray): One for each quantizer.

        Returns:
            set[str]: Layers that read a quantizer whose factor is new.
        """
        moved: set[str] = set()
        for i in np.flatnonzero(factors != self._now):
            q, f = self.quantizers[i], float(factors[i])
            q.set_range(*(end * f for end in self._ends[i]))
            for name in self._readers[id(q)]:
                layer = self._layers[name]
                if q is layer.weight_quantizer:
                    layer.fix_weight(q(layer.weight))
                moved.add(name)
        if self._means is not None:
            self._means.correct(moved)
        self._now = factors.copy()
        return moved


@contextmanager
def weights_once(session: Session) -> Iterator[None]:
    """Lets layers hold their quantized weights, not make them each time."""
    layers = [
        layer
        for layer in session.layers.values()
        if layer.weight_quantizer is not None
    ]
    for layer in layers:
        layer.fix_weight(layer.quantized_weight())
    try:
        yield
    finally:
        for layer in layers:
            layer.fix_weight(None)


def vertex(x: Sequence[float], y: Sequence[float]) -> float:
    """Where a parabola through points is least, within their span.

    Args:
        x (Sequence[float]): At least three.
        y (Sequence[float]): As many; infinite ones are left out.

    Returns:
        float: The vertex if the parabola opens upwards, else the x of the
        least y.
    """
    known = np.isfinite(y)
    if known.sum() < 3:
        return float(x[int(np.argmin(y))])
    a, b, _ = np.polyfit(np.array(x)[known], np.array(y)[known], 2)
    if not a > 0:
        return float(x[int(np.argmin(y))])
    return float(np.clip(-b / (2 * a), min(x), max(x)))
