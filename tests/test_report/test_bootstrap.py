# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP of drawn images."""

import contextlib
import io

import numpy as np
import pytest
from bootstrap_kit import CLASSES, IMAGES, dataset, written
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_ptq.report.bootstrap import (
    AREAS,
    coco_of,
    drawn,
    interval,
    per_image,
)
from tools.accuracy.bootstrap import read


def reference(truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        evaluated = COCOeval(coco, coco.loadRes(str(found)), 'bbox')
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated.stats[0]


@pytest.mark.parametrize('seed', [None, 0, 1, 2])
def test_ap_is_that_of_images_written_as_often(tmp_path, seed):
    one = read(*written(tmp_path, 'plain'))
    counts = np.ones(IMAGES, int)
    if seed is not None:
        drawn = np.random.default_rng(seed).integers(0, IMAGES, IMAGES)
        counts = np.bincount(drawn, minlength=IMAGES)
    expected = reference(*written(tmp_path, 'drawn', counts))
    assert one.ap(counts) == pytest.approx(expected, abs=2e-3)
    if seed is None:
        assert one.ap(counts) == pytest.approx(expected, abs=1e-12)


def test_a_method_does_not_differ_from_itself(tmp_path):
    one = read(*written(tmp_path, 'plain'))
    assert interval(one, one, 20, 0) == (0, 0, 0)


def test_one_that_finds_half_is_worse(tmp_path):
    one = read(*written(tmp_path, 'half', keep=0.5))
    other = read(*written(tmp_path, 'plain'))
    found, low, high = interval(one, other, 200, 0)
    assert low < found < high < 0
    assert interval(one, other, 200, 0) == (found, low, high)


def test_a_detector_that_finds_nothing(tmp_path):
    nothing = read(*written(tmp_path, 'nothing', keep=0))
    counts = np.ones(IMAGES)
    assert nothing.images == IMAGES and nothing.ap(counts) == 0
    other = read(*written(tmp_path, 'other'))
    assert interval(other, nothing, 5, 0)[0] == other.ap(counts) > 0


def test_sizes_and_classes_are_those_of_coco():
    """COCO's own sums, of each area and each class at each overlap."""
    truth, found = dataset()
    # some objects of each size
    for i, one in enumerate(truth['annotations']):
        one['area'] = (100, 2000, 20000)[i % 3]
    coco = coco_of(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated = COCOeval(coco, coco.loadRes(found), 'bbox')
        evaluated.evaluate()
        evaluated.accumulate()
    precision = evaluated.eval['precision'][..., -1]
    sides = per_image(coco, found)
    assert tuple(sides) == AREAS
    for a, one in enumerate(sides.values()):
        expected = precision[..., a]  # overlaps, recalls, classes
        known = (expected > -1).all(1).T
        table = one.table(np.ones(IMAGES))
        assert table.shape == (CLASSES, 10)
        assert np.array_equal(~np.isnan(table), known)
        mean = expected.mean(1).T
        assert table[known] == pytest.approx(mean[known], abs=1e-12)
    assert sum(s.objects.sum() for s in list(sides.values())[1:]) == sum(
        sides['all'].objects
    )


def test_drawings_have_as_many_images():
    counts = drawn(7, 5, 0)
    assert len(counts) == 5 and all(c.sum() == 7 for c in counts)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(counts, drawn(7, 5, 0), strict=True)
    )
