# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP of two detectors with intervals."""

import pytest
from report_kit import boxes, row, scene

from mmdet_ptq.report import accuracy as module
from mmdet_ptq.report.accuracy import accuracy

CLASSES = ('cat', 'dog')


def by_name(found):
    return {one['name']: one for one in found['rows']}


def test_one_that_finds_everything_against_one_that_drifts():
    found = accuracy(scene(), scene(6.0), CLASSES)
    assert (found['images'], found['of']) == (6, 6)
    rows = by_name(found)
    # the first class is found as it is by both
    assert rows['cat']['float'] == rows['cat']['quantized'] == 1
    assert (rows['cat']['low'], rows['cat']['high']) == (0, 0)
    # 60 wide: a shift of 6 i overlaps by (60 - 6 i) / (60 + 6 i), which is
    # 0.818, 0.667, 0.538, 0.429, 0.333: half of the images, one by one less
    assert rows['dog']['float'] == 1
    assert rows['dog']['low'] < rows['dog']['change'] < rows['dog']['high'] < 0
    assert rows['AP']['change'] == pytest.approx(
        rows['dog']['change'] / 2, abs=1e-4
    )
    assert rows['AP50']['quantized'] > rows['AP75']['quantized']
    assert rows['AP']['objects'] == 12 and rows['dog']['objects'] == 6
    # 30 by 30 is small, 60 by 70 is medium
    assert rows['small']['change'] == 0 > rows['medium']['change']
    assert rows['large']['quantized'] is None is rows['large']['low']


def test_without_a_float_test_the_interval_is_of_ap():
    rows = by_name(accuracy(None, scene(6.0), CLASSES))
    assert rows['AP']['float'] is None is rows['AP']['change']
    assert rows['AP']['low'] <= rows['AP']['quantized'] <= rows['AP']['high']


def test_without_objects_there_is_none():
    rows = [row(i, boxes((1, 1, 5, 5, 0, 0.5))) for i in range(2)]
    assert accuracy(rows, rows, CLASSES) is None
    assert accuracy(None, [row(0, boxes(), boxes())], CLASSES) is None


def test_many_images_are_weighed_in_part(monkeypatch):
    monkeypatch.setattr(module, 'MOST_IMAGES', 4)
    found = accuracy(scene(), scene(), CLASSES)
    assert (found['images'], found['of']) == (4, 6)
    assert by_name(found)['AP']['objects'] == 8


def test_a_class_without_a_name_has_a_number():
    assert {'cat', '1'} <= set(by_name(accuracy(None, scene(), ('cat',))))


def test_the_same_twice():
    assert accuracy(scene(), scene(6.0), CLASSES) == accuracy(
        scene(), scene(6.0), CLASSES
    )
