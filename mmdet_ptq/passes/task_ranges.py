# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges chosen by what they do to the detector's outputs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_world_size
from scipy.optimize import minimize

from ..calibration import (
    ActivationCache,
    Images,
    Session,
    frozen,
    set_quantized,
)
from ..detectors import find_adapter
from ..observers import BaseObserver, search_weight_range
from ..quantizers import HasRange
from ..registry import LOSSES, PASSES, build_from
from .init_ranges import InitRanges


class TaskRanges(InitRanges):
    """``InitRanges`` that then changes ranges by a loss on the outputs.

    Args:
        images (int): How many calibration images the loss is taken on, of
            each rank. Defaults to 8.
        loss (dict, optional): Loss on the detector's outputs. Defaults to
            ``dict(type='DetectionLoss')``.
        kwargs (Any): Arguments of :class:`InitRanges`.

    Raises:
        ValueError: If ``images`` is not a whole number of at least 1.
    """

    def __init__(
        self, images: int = 8, loss: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if type(images) is not int or images < 1:
            raise ValueError(f'images must be an int from 1, got {images!r}')
        self.images = images
        self.loss = loss or dict(type='DetectionLoss')
        build_from(LOSSES, self.loss, f'{type(self).__name__}.loss')

    def refine(self, session: Session, observers: list[BaseObserver]) -> None:
        """Chooses ranges, the float model's outputs being the target."""
        with self._task(session) as task:
            self.choose(session, observers, task)

    def choose(
        self, session: Session, observers: list[BaseObserver], task: '_Task'
    ) -> None:
        """What a method does; ``task(layers)`` is the loss."""
        raise NotImplementedError

    @contextmanager
    def _task(self, session: Session) -> Iterator['_Task']:
        config = session.config.calibration
        cache = ActivationCache(
            config.cache_bytes, session.work_dir, config.cache_dtype
        )
        loss = build_from(LOSSES, self.loss, type(self).__name__)
        try:
            with frozen(session.model):
                images = Images(
                    session,
                    cache,
                    find_adapter(session.model, mask=True),
                    [loss],
                    limit=self.images,
                )
                yield _Task(session, images, loss)
        finally:
            cache.close()


class _Task:
    """The loss of the detector with some layers quantized."""

    def __init__(self, session: Session, images: Images, loss: Any) -> None:
        self.session = session
        self.images = images
        self.loss = loss

    @torch.no_grad()
    def __call__(self, layers: set[str]) -> float:
        """Mean loss over the images of all ranks."""
        total = torch.zeros((), dtype=torch.float64)
        with set_quantized(self.session, layers, layers):
            for j in self.images.mine:
                target = self.images.targets(j)[0]
                total += float(self.loss(self.images.run(j), target))
        if get_world_size() > 1:
            all_reduce(total)
        return float(total) / len(self.images.everyone)


def _set_exponent(
    session: Session,
    observers: list[BaseObserver],
    layers: Sequence[str],
    p: float,
    seen: set[int] = frozenset(),
) -> None:
    """Ranges of least Lp error for weights and inputs of some layers.

    Args:
        session (Session): The running quantization.
        observers (list[BaseObserver]): Of the groups of the plan, in order.
        layers (Sequence[str]): Names of the layers.
        p (float): Exponent.
        seen (set[int]): Ids of activation quantizers to leave alone.
    """
    twins = session.layers
    for name in layers:
        layer = twins[name]
        quantizer = layer.weight_quantizer
        if quantizer is not None and not quantizer.fit(layer.weight):
            quantizer.set_range(
                *search_weight_range(layer.weight, quantizer, p=p)
            )
    chosen = set(layers)
    for group, observer in zip(session.plan.groups, observers, strict=True):
        quantizer = twins[group[0][0]].act_quantizers[group[0][1]]
        if id(quantizer) in seen or not chosen & {n for n, _ in group}:
            continue
        before, observer.p = observer.p, p
        quantizer.set_range(*observer.ranges(quantizer))
        observer.p = before


@PASSES.register_module()
class ChooseExponents(TaskRanges):
    """The exponent of the Lp search, for each unit the best one (DetPTQ).

    Units are visited in execution order. For each exponent, weights and
    inputs of the unit get the ranges of least Lp error; the exponent stays
    with which the detector, quantized up to and with this unit, has the
    least loss. No code is published: this is the form of the abstract.

    Args:
        exponents (Sequence[float]): Exponents to try.
        images (int): See :class:`TaskRanges`.
        loss (dict, optional): See :class:`TaskRanges`.
        kwargs (Any): Arguments of :class:`InitRanges`; its observers must
            be ``LpObserver``.

    Raises:
        ValueError: If there is no exponent, or one is not above 0.
    """

    def __init__(
        self,
        exponents: Sequence[float] = (1.0, 1.5, 2.0, 2.4, 3.0, 3.5, 4.0),
        images: int = 8,
        loss: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(images=images, loss=loss, **kwargs)
        if not exponents or not all(p > 0 for p in exponents):
            raise ValueError(
                f'exponents must be numbers above 0, got {exponents!r}'
            )
        _need_lp(self)
        self.exponents = tuple(exponents)

    def choose(
        self, session: Session, observers: list[BaseObserver], task: _Task
    ) -> None:
        """See :meth:`TaskRanges.choose`."""
        quantized: set[str] = set()
        seen: set[int] = set()
        units = session.graph.units
        layers = session.layers
        for k, unit in enumerate(units):
            session.progress('choose exponents', unit.name, k, len(units))
            quantized |= set(unit.layers)
            losses = []
            for p in self.exponents:
                _set_exponent(session, observers, unit.layers, p, seen)
                losses.append(task(quantized))
            best = self.exponents[int(np.argmin(losses))]
            _set_exponent(session, observers, unit.layers, best, seen)
            session.records.append(
                dict(unit=unit.name, exponent=best, loss=min(losses))
            )
            seen |= {
                id(q)
                for n in unit.layers
                for q in layers[n].act_quantizers.values()
            }


@PASSES.register_module()
class LAPQ(TaskRanges):
    """Loss-aware ranges (Nahshan et al., 2021).

    First one exponent for all ranges: losses at ``exponents`` are fitted by a
    parabola, whose vertex is taken. Then Powell's method, over a factor for
    each range, weights and activations together. The best that was seen is
    kept.

    Args:
        exponents (Sequence[float]): Exponents, at least three. Defaults to ten
            from 2 to 4.
        powell_iters (int): Rounds of Powell's method; 0 leaves it out.
            Defaults to 1.
        width (float): How far a factor may go from 1. Defaults to 0.3.
        images (int): See :class:`TaskRanges`.
        loss (dict, optional): See :class:`TaskRanges`.
        kwargs (Any): Arguments of :class:`InitRanges`; its observers must
            be ``LpObserver``.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        exponents: Sequence[float] = tuple(np.linspace(2, 4, 10).tolist()),
        powell_iters: int = 1,
        width: float = 0.3,
        images: int = 8,
        loss: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(images=images, loss=loss, **kwargs)
        if len(exponents) < 3 or not all(p > 0 for p in exponents):
            raise ValueError(
                'exponents must be three or more numbers above 0, got '
                f'{exponents!r}'
            )
        if type(powell_iters) is not int or powell_iters < 0:
            raise ValueError(
                f'powell_iters must be an int from 0, got {powell_iters!r}'
            )
        if not 0 < width < 1:
            raise ValueError(f'width must be between 0 and 1, got {width!r}')
        _need_lp(self)
        self.exponents = tuple(exponents)
        self.powell_iters = powell_iters
        self.width = width

    def choose(
        self, session: Session, observers: list[BaseObserver], task: _Task
    ) -> None:
        """See :meth:`TaskRanges.choose`."""
        names = list(session.graph.layers)
        losses = []
        for i, p in enumerate(self.exponents):
            session.progress('exponents', f'{p:.2f}', i, len(self.exponents))
            _set_exponent(session, observers, names, p)
            losses.append(task(set(names)))
        tried = dict(zip(self.exponents, losses, strict=True))
        p = vertex(self.exponents, losses)
        _set_exponent(session, observers, names, p)
        tried[p] = task(set(names))
        best = min(tried, key=tried.__getitem__)
        _set_exponent(session, observers, names, best)
        after = tried[best]
        if self.powell_iters:
            after = self._powell(session, task, set(names), after)
        session.records.append(
            dict(unit='all', exponent=best, loss=tried[best], after=after)
        )

    def _powell(
        self, session: Session, task: _Task, names: set[str], before: float
    ) -> float:
        """Moves every range by a factor of its own; gives the loss."""
        quantizers = _quantizers(session)
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
        y (Sequence[float]): As many.

    Returns:
        float: The vertex if the parabola opens upwards, else the x of the
        least y.
    """
    a, b, _ = np.polyfit(x, y, 2)
    if not a > 0:
        return float(x[int(np.argmin(y))])
    return float(np.clip(-b / (2 * a), min(x), max(x)))


def _need_lp(owner: TaskRanges) -> None:
    for name in ('observer', 'weight_observer'):
        if getattr(owner, name)['type'] != 'LpObserver':
            raise ValueError(
                f"{name} must be an 'LpObserver': its exponent is what is "
                f'chosen; got {getattr(owner, name)["type"]!r}'
            )


def _quantizers(session: Session) -> list[Any]:
    """Each quantizer with a range once, weights and activations."""
    found: dict[int, Any] = {}
    for layer in session.layers.values():
        for q in (layer.weight_quantizer, *layer.act_quantizers.values()):
            if isinstance(q, HasRange) and q.initialized:
                found[id(q)] = q
    return list(found.values())
