# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Parts by what they lose, and how well two ways of ranking agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .entries import ALL
from .parts import Part

T = TypeVar('T')


@dataclass(frozen=True)
class Rank:
    """What one part loses.

    Attributes:
        part (Part): Which.
        weight (float, optional): Score with its weights alone quantized;
            None if they are float.
        act (float, optional): The same of its inputs.
        spared_weight (float, optional): By how much the score of all
            quantized falls where its weights are left float.
        spared_act (float, optional): The same of its inputs.
    """

    part: Part
    weight: float | None
    act: float | None
    spared_weight: float | None
    spared_act: float | None

    @property
    def score(self) -> float:
        """Those of its weights and of its inputs alone, added up."""
        return sum(v for v in (self.weight, self.act) if v is not None)

    @property
    def spared(self) -> float:
        """What is gained where either is left float, added up."""
        known = (self.spared_weight, self.spared_act)
        return sum(v for v in known if v is not None)


def ranked(parts: Sequence[Part], scores: Mapping[str, float]) -> list[Rank]:
    """Parts, those first that lose most.

    Args:
        parts (Sequence[Part]): Any of those that were evaluated.
        scores (Mapping[str, float]): ``score`` by key of an entry.

    Returns:
        list[Rank]: Equals in the given order.
    """
    whole = scores[ALL]

    def of(part: Part) -> Rank:
        alone = [scores.get(f'alone/{t}/{part.name}') for t in _TENSORS]
        rest = [scores.get(f'without/{t}/{part.name}') for t in _TENSORS]
        spared = [None if v is None else whole - v for v in rest]
        return Rank(part, alone[0], alone[1], spared[0], spared[1])

    return sorted(map(of, parts), key=lambda rank: -rank.score)


_TENSORS = ('weight', 'act')


def spread_over(items: Sequence[T], count: int) -> list[T]:
    """So many items at even distances, the first and the last among them.

    Args:
        items (Sequence): In order.
        count (int): How many, at least 1; all if there are no more.
    """
    if count >= len(items):
        return list(items)
    places = np.linspace(0, len(items) - 1, count).round().astype(int)
    return [items[i] for i in places]


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Rank correlation; equal values share the mean of their ranks.

    Args:
        a (Sequence[float]): At least two values.
        b (Sequence[float]): As many.

    Returns:
        float, optional: From -1 to 1; None if either is constant.
    """
    x, y = (_ranks(np.asarray(v, np.float64)) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(
        values, return_inverse=True, return_counts=True
    )
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[places]
