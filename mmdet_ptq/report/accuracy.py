# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP before and after by overlap, size and class, with intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from .bootstrap import PerImage, coco_of, drawn, mean, per_image
from .predictions import ImageRow, as_coco, as_results

#: images at most; of more a part is drawn by chance
MOST_IMAGES = 2000
#: drawings times detections that a report weighs
WORK = 2e7
SEED = 0

Pick = Callable[[dict[str, np.ndarray]], float]
"""One AP out of the tables of all areas"""


def accuracy(
    before: Sequence[ImageRow] | None,
    after: Sequence[ImageRow],
    classes: Sequence[str],
) -> dict | None:
    """Box AP of a float and a quantized detector on the same images.

    Args:
        before (Sequence[ImageRow], optional): Of the float detector.
        after (Sequence[ImageRow]): Of the quantized one.
        classes (Sequence[str]): Names by label.

    Returns:
        dict, optional: None if no image has objects. ``images`` and ``of``
        (how many were weighed, of how many), ``drawings``, and ``rows``:
        ``group`` (``'all'``, ``'overlap'``, ``'size'``, ``'class'``),
        ``name``, ``objects``, ``float``, ``quantized``, ``change`` and of
        what is asked about (the change, or the AP if there is no float
        test) 95 % of the drawings, ``low`` to ``high``. What is not known
        is None.
    """
    pairs = _paired(before, after)
    total = len(pairs)
    if not any(row.truth is not None and len(row.truth) for _, row in pairs):
        return None
    if total > MOST_IMAGES:
        rng = np.random.default_rng(SEED)
        chosen = np.sort(rng.permutation(total)[:MOST_IMAGES])
        pairs = [pairs[i] for i in chosen]
    names = _names(classes, pairs)
    truth = coco_of(as_coco([row for _, row in pairs], names))
    sides = [per_image(truth, as_results([row for _, row in pairs]))]
    if before is not None:
        firsts = [row for row, _ in pairs if row is not None]
        sides.append(per_image(truth, as_results(firsts)))
    work = sum(area.detections for side in sides for area in side.values())
    drawings = int(np.clip(WORK / max(work, 1), 100, 400))
    return dict(
        images=len(pairs),
        of=total,
        drawings=drawings,
        rows=_rows(sides, names, drawings),
    )


def _paired(
    before: Sequence[ImageRow] | None, after: Sequence[ImageRow]
) -> list[tuple[ImageRow | None, ImageRow]]:
    """Images with objects known, of both tests where there are two."""
    rows = [row for row in after if row.truth is not None]
    if before is None:
        return [(None, row) for row in rows]
    known = {row.key: row for row in before}
    return [(known[row.key], row) for row in rows if row.key in known]


def _names(
    classes: Sequence[str],
    pairs: Sequence[tuple[ImageRow | None, ImageRow]],
) -> list[str]:
    """Names of classes, and numbers of those that have none."""
    labels = [
        boxes.labels
        for pair in pairs
        for row in pair
        if row is not None
        for boxes in (row.found, row.truth)
    ]
    most = max((int(x.max()) + 1 for x in labels if len(x)), default=0)
    return [*map(str, classes), *map(str, range(len(classes), most))]


def _rows(
    sides: list[dict[str, PerImage]], names: list[str], drawings: int
) -> list[dict]:
    """A row for each question; the first side is the quantized one."""
    whole = sides[0]['all']
    picks = _picks(names, whole.objects)
    counts = [np.ones(whole.images), *drawn(whole.images, drawings, SEED)]
    found = np.full((len(sides), len(counts), len(picks)), np.nan)
    for s, side in enumerate(sides):
        for d, count in enumerate(counts):
            tables = {area: one.table(count) for area, one in side.items()}
            found[s, d] = [pick(tables) for *_, pick in picks]
    asked = found[0] - found[1] if len(sides) > 1 else found[0]
    rows = []
    for i, (group, name, area, k, _) in enumerate(picks):
        objects = sides[0][area].objects
        low, high = _ends(asked[1:, i])
        rows.append(
            dict(
                group=group,
                name=name,
                objects=int(objects.sum() if k is None else objects[k]),
                float=_plain(found[1, 0, i]) if len(sides) > 1 else None,
                quantized=_plain(found[0, 0, i]),
                change=_plain(asked[0, i]) if len(sides) > 1 else None,
                low=low,
                high=high,
            )
        )
    return rows


def _picks(
    names: list[str], objects: np.ndarray
) -> list[tuple[str, str, str, int | None, Pick]]:
    """Group, name, area and class of each question, and its answer."""
    found: list = [('all', 'AP', 'all', None, lambda t: mean(t['all']))]
    for name, at in (('AP50', 0), ('AP75', 5)):
        found.append(
            (
                'overlap',
                name,
                'all',
                None,
                lambda t, a=at: mean(t['all'][:, a]),
            )
        )
    for size in ('small', 'medium', 'large'):
        found.append(('size', size, size, None, lambda t, s=size: mean(t[s])))
    for k, name in enumerate(names):
        if objects[k]:
            found.append(
                ('class', name, 'all', k, lambda t, c=k: mean(t['all'][c]))
            )
    return found


def _ends(values: np.ndarray) -> tuple[float | None, float | None]:
    known = values[~np.isnan(values)]
    if not known.size:
        return None, None
    low, high = np.percentile(known, (2.5, 97.5))
    return _plain(low), _plain(high)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 5)
