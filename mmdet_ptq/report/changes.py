# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What became of the float detector's detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .predictions import Boxes, ImageRow, class_name

#: what can become of a detection, the best first
FATES = ('kept', 'shifted', 'misclassified', 'faded', 'missed')
#: from which score on a detection is looked at: MMDetection draws these
SCORE = 0.3
#: overlap of the same box, and of one that has moved
SAME, MOVED = 0.75, 0.5
BINS = 20


@dataclass(frozen=True, eq=False)
class Match:
    """One image of two detectors.

    Attributes:
        reference (np.ndarray): Which boxes of the reference were looked at.
        fates (list[str]): What became of each, of :data:`FATES`.
        overlaps (np.ndarray): IoU with the sure box of the same class that
            was taken for it, 0 where there is none.
        sure (np.ndarray): Which boxes of the other are sure.
        new (np.ndarray): Which of them nothing of the reference explains.
    """

    reference: np.ndarray
    fates: list[str]
    overlaps: np.ndarray
    sure: np.ndarray
    new: np.ndarray

    @property
    def lost(self) -> int:
        """How much is not as it was."""
        changed = sum(fate != 'kept' for fate in self.fates)
        return changed + int(self.new.sum())


def match(reference: Boxes, other: Boxes, score: float = SCORE) -> Match:
    """Finds each sure box of one detector among those of another.

    A box is *kept* if a sure one of its class covers it by an IoU of 0.75,
    *shifted* if by 0.5. Of the rest it is *misclassified* if a sure box of
    another class covers it by 0.5, *faded* if one of its class does that is
    not sure any more, and else *missed*. Each other box explains one.

    Args:
        reference (Boxes): E.g. of the float detector.
        other (Boxes): E.g. of the quantized one.
        score (float): From which score on a box is sure.
    """
    mine = np.flatnonzero((reference.scores >= score) & ~reference.crowd)
    sure = np.flatnonzero(other.scores >= score)
    every = iou(reference.corners, other.corners)
    alike = reference.labels[:, None] == other.labels[None]
    fates = ['missed'] * len(mine)
    overlaps = np.zeros(len(mine))
    free = np.zeros(len(other), bool)
    free[sure] = True
    for wanted in ('same', 'other', 'faint'):
        for at, box in enumerate(mine):
            if fates[at] != 'missed':
                continue
            fit = ~alike[box] if wanted == 'other' else alike[box]
            fit = fit & (free if wanted != 'faint' else other.scores < score)
            best = np.where(fit, every[box], 0)
            found = int(best.argmax()) if len(best) else 0
            if not len(best) or best[found] < MOVED:
                continue
            free[found] = False
            fates[at] = _fate(wanted, best[found])
            overlaps[at] = best[found] if wanted == 'same' else 0
    explained = (every * alike >= MOVED).any(0)
    return Match(mine, fates, overlaps, sure, (free & ~explained)[sure])


def _fate(wanted: str, overlap: float) -> str:
    if wanted == 'same':
        return 'kept' if overlap >= SAME else 'shifted'
    return 'misclassified' if wanted == 'other' else 'faded'


def iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Intersection over union of corner boxes.

    Args:
        one (np.ndarray): ``[N, 4]``.
        other (np.ndarray): ``[M, 4]``.

    Returns:
        np.ndarray: ``[N, M]``; 0 where both are empty.
    """
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    sizes = [
        np.clip(b[:, 2:] - b[:, :2], 0, None).prod(1) for b in (one, other)
    ]
    union = sizes[0][:, None] + sizes[1][None] - shared
    return shared / np.maximum(union, np.spacing(np.float32(1)))


def changes(
    before: Sequence[ImageRow],
    after: Sequence[ImageRow],
    classes: Sequence[str],
) -> dict:
    """Sums of :func:`match` over images.

    Args:
        before (Sequence[ImageRow]): Of the float detector.
        after (Sequence[ImageRow]): Of the quantized one.
        classes (Sequence[str]): Names by label.

    Returns:
        dict: ``score``; ``images``; ``fates`` (how many of each), ``new``;
        ``classes``: name and the same of each class that has any; ``bins``:
        how many detections of each IoU, 20 equal bins from 0 to 1.
    """
    known = {row.key: row for row in before}
    both = [(known[row.key], row) for row in after if row.key in known]
    totals: dict[int, dict[str, int]] = {}
    bins = np.zeros(BINS, int)
    for one, other in both:
        found = match(one.found, other.found)
        labels = one.found.labels[found.reference].tolist()
        for label, fate in zip(labels, found.fates, strict=True):
            _count(totals, label, fate)
        for label in other.found.labels[found.sure][found.new].tolist():
            _count(totals, label, 'new')
        at = np.minimum(found.overlaps * BINS, BINS - 1).astype(int)
        bins += np.bincount(at, minlength=BINS)
    kinds = (*FATES, 'new')
    sums = {k: sum(t.get(k, 0) for t in totals.values()) for k in kinds}
    named = [
        dict(
            name=class_name(classes, label), **{k: t.get(k, 0) for k in kinds}
        )
        for label, t in sorted(totals.items())
    ]
    return dict(
        score=SCORE,
        images=len(both),
        new=sums.pop('new'),
        fates=sums,
        classes=named,
        bins=bins.tolist(),
    )


def _count(totals: dict, label: int, kind: str) -> None:
    mine = totals.setdefault(label, {})
    mine[kind] = mine.get(kind, 0) + 1
