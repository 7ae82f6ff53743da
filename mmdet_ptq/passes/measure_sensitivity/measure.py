# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Scores of a detector of which some layers are quantized."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from ...calibration import ActivationCache, Session, Sweep, frozen
from ...errors import NumericError
from ...layers import quantizing
from ...structures import Unit
from .entries import Entry
from .scores import Score


class Measure:
    """Evaluates entries, in any order; the order of ``entries_of`` is fast.

    Args:
        session (Session): After its last pass, its weights not baked.
        score (Score): What is lost.
        cache (ActivationCache): Where outputs of modules are kept.

    Attributes:
        sweep (Sweep): What need not be computed again.
        seconds (list[float]): Of each forward of the latest evaluation.
    """

    def __init__(
        self, session: Session, score: Score, cache: ActivationCache
    ) -> None:
        self._session = session
        self._score = score
        self._twins = session.layers
        units = [Unit(name, (name,)) for name in self._twins]
        self.sweep = Sweep(session.model, units, cache)
        self.seconds: list[float] = []
        none: frozenset[str] = frozenset()
        self._now = Entry('', none, none)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, entries can be evaluated; weights are quantized once."""
        with (
            frozen(self._session.model),
            weights_held(self._session),
            self.sweep.watching(),
        ):
            yield

    @torch.no_grad()
    def __call__(
        self, entry: Entry, then: Entry | None = None
    ) -> dict[str, float]:
        """What is lost with the layers of an entry quantized.

        Args:
            entry (Entry): The layers.
            then (Entry, optional): What is evaluated next.

        Returns:
            dict[str, float]: ``score`` and what it is made of.

        Raises:
            NumericError: If it is NaN or Inf.
        """
        self.sweep.change(entry.changes(self._now))
        self._now = entry
        soon = entry.changes(then) if then is not None else frozenset()
        with quantizing(self._twins, entry.weights, entry.acts):
            found = self._score.total(self._outputs(soon))
        wrong = [k for k, v in found.items() if not math.isfinite(v)]
        if wrong:
            raise NumericError(
                f'{entry.key}: {", ".join(wrong)} of the detector is NaN or '
                'Inf with these layers quantized; leave them float by a rule '
                'with skip=True'
            )
        return found

    def _outputs(self, soon: frozenset[str]) -> Iterator[tuple[int, Any]]:
        score = self._score
        self.seconds = []
        for j in score.images:
            start = time.monotonic()
            found = self.sweep.run(j, partial(score.run, j), soon)
            self.seconds.append(time.monotonic() - start)
            yield j, found


@contextmanager
def weights_held(session: Session) -> Iterator[None]:
    """Lets layers hold their quantized weights, not make them each time.

    Args:
        session (Session): What was learned or compensated stays as it is.
    """
    layers = [
        layer
        for layer in session.layers.values()
        if layer.weight_quantizer is not None and layer.rounded is None
    ]
    for layer in layers:
        layer.fix_weight(layer.quantized_weight().detach())
    try:
        yield
    finally:
        for layer in layers:
            layer.fix_weight(None)
