# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images that changed most, small enough to be part of a page."""

import base64
from collections.abc import Sequence
from pathlib import PurePath

import cv2
import mmcv
import numpy as np

from .changes import SCORE, match
from .predictions import Boxes, ImageRow, class_name

#: images in a report, and their longer side in pixels
COUNT, SIDE = 8, 320


def examples(
    before: Sequence[ImageRow] | None,
    after: Sequence[ImageRow],
    classes: Sequence[str],
    count: int = COUNT,
) -> list[dict]:
    """The images on which most changed, the worst first.

    Args:
        before (Sequence[ImageRow], optional): Of the float detector. Without
            it the objects are what the quantized one is compared with.
        after (Sequence[ImageRow]): Of the quantized one.
        classes (Sequence[str]): Names by label.
        count (int): How many. Defaults to 8.

    Returns:
        list[dict]: ``name``, ``size`` (height, width), ``lost`` (how many
        boxes are not as they were), ``picture`` (a JPEG in base64, '' if
        the file cannot be read), and ``float``, ``quantized``, ``truth``:
        lists of ``[x1, y1, x2, y2, class, score, fate]`` in pixels, None
        where not known.
    """
    known = None if before is None else {row.key: row for row in before}
    found = []
    for row in after:
        one = None if known is None else known.get(row.key)
        if known is not None and one is None:
            continue
        reference = row.truth if one is None else one.found
        if reference is None:
            continue
        found.append((match(reference, row.found), one, row))
    # of equal ones the first
    found.sort(key=lambda item: -item[0].lost)
    return [_example(*item, classes) for item in found[:count]]


def _example(
    matched, one: ImageRow | None, row: ImageRow, classes: Sequence[str]
) -> dict:
    new = ['new' if new else 'kept' for new in matched.new]
    before = None
    if one is not None:
        before = _listed(one.found, matched.reference, matched.fates, classes)
    truth = None
    if row.truth is not None:
        every = np.arange(len(row.truth))
        fates = [''] * len(every) if one is not None else matched.fates
        whole = every if one is not None else matched.reference
        truth = _listed(row.truth, whole, fates, classes)
    return dict(
        name=PurePath(row.path).name or row.key,
        size=list(row.size),
        lost=matched.lost,
        score=SCORE,
        picture=picture(row.path),
        float=before,
        quantized=_listed(row.found, matched.sure, new, classes),
        truth=truth,
    )


def _listed(
    boxes: Boxes,
    chosen: np.ndarray,
    fates: Sequence[str],
    classes: Sequence[str],
) -> list[list]:
    found = []
    for i, fate in zip(chosen.tolist(), fates, strict=True):
        label = int(boxes.labels[i])
        name = class_name(classes, label)
        corners = [round(v, 1) for v in boxes.corners[i].tolist()]
        found.append([*corners, name, round(float(boxes.scores[i]), 3), fate])
    return found


def picture(path: str) -> str:
    """A small JPEG of an image file.

    Args:
        path (str): Of the file.

    Returns:
        str: In base64; '' if it cannot be read here.
    """
    try:
        image = mmcv.imread(path)
    except (OSError, ValueError, cv2.error):
        return ''  # the page says so in its place
    if image is None:
        return ''
    scale = min(1.0, SIDE / max(image.shape[:2]))
    small = mmcv.imrescale(image, scale)
    _, data = cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 70])
    return base64.b64encode(data.tobytes()).decode()
