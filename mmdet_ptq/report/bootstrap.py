# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP of images drawn with replacement: what the choice of images explains.

Images are matched once by COCO's own code; AP of any drawing of them is then
a weighted count (a paired bootstrap where two detectors are weighed by the
same drawings).
"""

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

#: COCO's sizes of objects, by area in pixels
AREAS = ('all', 'small', 'medium', 'large')


class PerImage:
    """What COCO's matching says of each detection, ready to be weighed.

    Args:
        evaluation (COCOeval): Of boxes, evaluated.
        area (int): Which of its ranges of area.

    Attributes:
        images (int): How many there are.
        objects (np.ndarray): Objects of each class, ``[K]``.
        detections (int): How many count.
    """

    def __init__(self, evaluation: COCOeval, area: int) -> None:
        params = evaluation.params
        self.images = len(params.imgIds)
        self._recalls = np.asarray(params.recThrs)
        self._overlaps = len(params.iouThrs)
        most, n = params.maxDets[-1], self.images
        starts = [
            (k * len(params.areaRng) + area) * n
            for k in range(len(params.catIds))
        ]
        self._classes = [
            self._of_class(evaluation.evalImgs[s : s + n], most)
            for s in starts
        ]
        self.objects = np.array([c[3].sum() for c in self._classes], int)
        self.detections = sum(len(c[0]) for c in self._classes)

    def _of_class(
        self, found: list[dict | None], most: int
    ) -> tuple[np.ndarray, ...]:
        """Image of each detection and its matches, the surest first."""
        scores, at, hits, passed = [], [], [], []
        truths = np.zeros(self.images)
        for i, one in enumerate(found):
            if one is None:
                continue
            truths[i] = np.sum(np.asarray(one['gtIgnore']) == 0)
            mine = np.asarray(one['dtScores'][:most])
            scores.append(mine)
            at.append(np.full(len(mine), i))
            hits.append(one['dtMatches'][:, :most] > 0)
            passed.append(one['dtIgnore'][:, :most] == 0)
        if not scores:
            empty = np.zeros((self._overlaps, 0), bool)
            return np.zeros(0, int), empty, empty, truths
        order = np.argsort(-np.concatenate(scores), kind='mergesort')
        hits, passed = (np.concatenate(x, 1)[:, order] for x in (hits, passed))
        # what COCO passes over at every overlap has no part in any sum
        counts = passed.any(0)
        at, hits, passed = (
            np.concatenate(at)[order][counts],
            hits[:, counts],
            passed[:, counts],
        )
        right, wrong = hits & passed, ~hits & passed
        # whatever comes behind the last right one adds to no recall
        last = np.flatnonzero(right.any(0))
        end = last[-1] + 1 if len(last) else 0
        return at[:end], right[:, :end], wrong[:, :end], truths

    def table(self, counts: np.ndarray) -> np.ndarray:
        """AP of each class at each overlap, as COCO defines it.

        Args:
            counts (np.ndarray): How often each image is there, ``[N]``.

        Returns:
            np.ndarray: ``[K, T]``, overlaps from 0.50 to 0.95; NaN where a
            class has no object.
        """
        found = np.full((len(self._classes), self._overlaps), np.nan)
        for k, (at, right, wrong, truths) in enumerate(self._classes):
            total = float(counts @ truths)
            if total == 0:
                continue
            weights = counts[at]
            good = np.cumsum(right * weights, 1)
            bad = np.cumsum(wrong * weights, 1)
            precision = good / np.maximum(good + bad, np.spacing(1))
            # the best precision at this recall or above
            best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
            for t, recall in enumerate(good / total):
                where = np.searchsorted(recall, self._recalls, 'left')
                inside = where < best.shape[1]
                found[k, t] = best[t][where[inside]].sum() / len(where)
        return found

    def ap(self, counts: np.ndarray) -> float:
        """Mean over classes and overlaps; NaN if no class has an object."""
        return mean(self.table(counts))


def mean(table: np.ndarray) -> float:
    """Mean of what is not NaN; NaN of nothing."""
    known = table[~np.isnan(table)]
    return float(known.mean()) if known.size else float('nan')


def per_image(truth: COCO, found: list[dict]) -> dict[str, PerImage]:
    """Matches detections with objects.

    Args:
        truth (COCO): Images, objects and classes.
        found (list[dict]): Boxes in COCO's result format.

    Returns:
        dict[str, PerImage]: For each of :data:`AREAS`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, _results(truth, found), 'bbox')
        evaluation.evaluate()
    return {name: PerImage(evaluation, i) for i, name in enumerate(AREAS)}


def _results(truth: COCO, found: list[dict]) -> COCO:
    if found:
        return truth.loadRes(found)
    # which cannot read that nothing was detected
    return coco_of({**truth.dataset, 'annotations': []})


def coco_of(dataset: dict) -> COCO:
    """An indexed data set, in silence.

    Args:
        dataset (dict): ``images``, ``annotations`` and ``categories``.
    """
    found = COCO()
    found.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def interval(
    one: PerImage, other: PerImage, drawings: int, seed: int
) -> tuple[float, float, float]:
    """Difference of AP on all images, and where 95 % of drawings lie.

    Args:
        one (PerImage): Of the method that is asked about.
        other (PerImage): Of the one it is compared with, on the same images.
        drawings (int): How many times images are drawn.
        seed (int): Of the drawing.

    Returns:
        tuple[float, float, float]: Difference, lower and upper end.
    """
    everything = np.ones(one.images)
    differences = [
        one.ap(counts) - other.ap(counts)
        for counts in drawn(one.images, drawings, seed)
    ]
    low, high = np.percentile(differences, (2.5, 97.5))
    return one.ap(everything) - other.ap(everything), low, high


def drawn(images: int, drawings: int, seed: int) -> list[np.ndarray]:
    """How often each image is in a drawing of as many, ``[N]`` each."""
    rng = np.random.default_rng(seed)
    return [
        np.bincount(rng.integers(0, images, images), minlength=images)
        for _ in range(drawings)
    ]
