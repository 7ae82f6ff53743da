# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""LAPQ: one exponent, then all ranges at once."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from ..calibration import Session
from ..checks import number, whole
from ..quantizers import HasRange
from ..records import RangeRecord
from ..registry import PASSES
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
        powell_iters (int): Rounds of Powell's method; 0 leaves it out.
            Defaults to 1.
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
        width: float = 0.3,
        images: int = 8,
        loss: dict = TASK_LOSS,
    ) -> None:
        super().__init__(images, loss)
        self.exponents = check_exponents(exponents, 3)
        self.powell_iters = whole('powell_iters', powell_iters)
        self.width = number('width', width, 0, 1, above=True)
        if width == 1:
            raise ValueError('width must be below 1, got 1')

    def choose(self, session: Session, task: TaskLoss) -> None:
        """See :meth:`TaskPass.choose`."""
        names = list(session.graph.layers)
        losses = []
        for i, p in enumerate(self.exponents):
            session.progress('exponents', f'{p:.2f}', i, len(self.exponents))
            set_exponent(session, names, p)
            losses.append(task(set(names)))
        tried = dict(zip(self.exponents, losses, strict=True))
        p = vertex(self.exponents, losses)
        set_exponent(session, names, p)
        tried[p] = task(set(names))
        best = min(tried, key=tried.__getitem__)
        set_exponent(session, names, best)
        after = tried[best]
        if self.powell_iters:
            after = self._powell(session, task, set(names), after)
        session.records.append(RangeRecord('all', best, tried[best], after))

    def _powell(
        self, session: Session, task: TaskLoss, names: set[str], before: float
    ) -> float:
        """Moves every range by a factor of its own; gives the loss."""
        quantizers = _with_ranges(session)
        ranges = [q.range() for q in quantizers]
        best = [before, np.ones(len(quantizers))]
        count = [0]

        def apply(factors: np.ndarray) -> None:
            for q, (low, high), f in zip(
                quantizers, ranges, factors, strict=True
            ):
                q.set_range(low * float(f), high * float(f))

        def loss(factors: np.ndarray) -> float:
            session.progress('powell', '', count[0], count[0] + 1)
            count[0] += 1
            apply(factors)
            found = task(names)
            if found < best[0]:
                best[:] = [found, factors.copy()]
            return found

        minimize(
            loss,
            np.ones(len(quantizers)),
            method='Powell',
            bounds=[(1 - self.width, 1 + self.width)] * len(quantizers),
            options=dict(maxiter=self.powell_iters, xtol=0.05, ftol=1e-3),
        )
        apply(best[1])
        return best[0]


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


def _with_ranges(session: Session) -> list[HasRange]:
    """Each quantizer that has a range once, weights and activations."""
    found: dict[int, HasRange] = {}
    for layer in session.layers.values():
        for q in (layer.weight_quantizer, *layer.act_quantizers.values()):
            if isinstance(q, HasRange) and q.initialized:
                found[id(q)] = q
    return list(found.values())
