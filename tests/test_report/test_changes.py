# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What became of boxes."""

import numpy as np
import pytest
import torch
from mmdet.structures.bbox import bbox_overlaps
from report_kit import boxes, row

from mmdet_ptq.report.changes import FATES, changes, iou, match

BOX = (0, 0, 10, 10)


@pytest.mark.parametrize(
    ('other', 'fate', 'new'),
    [
        ([(*BOX, 0, 0.9)], 'kept', 0),
        # 10 x 8 of 100: IoU 0.8; 10 x 6: 0.6; 10 x 4: 0.4
        ([(0, 0, 10, 8, 0, 0.9)], 'kept', 0),
        ([(0, 0, 10, 6, 0, 0.9)], 'shifted', 0),
        ([(0, 0, 10, 4, 0, 0.9)], 'missed', 1),
        ([(*BOX, 1, 0.9)], 'misclassified', 0),
        ([(*BOX, 0, 0.1)], 'faded', 0),
        ([(*BOX, 1, 0.1)], 'missed', 0),
        ([], 'missed', 0),
        ([(*BOX, 0, 0.9), (50, 50, 60, 60, 0, 0.9)], 'kept', 1),
        # a right class outweighs a better overlap
        ([(*BOX, 1, 0.9), (0, 0, 10, 6, 0, 0.8)], 'shifted', 1),
    ],
)
def test_fates(other, fate, new):
    found = match(boxes((*BOX, 0, 0.9)), boxes(*other))
    assert (found.fates, int(found.new.sum())) == ([fate], new)
    assert found.lost == (fate != 'kept') + new


def test_a_box_explains_one():
    one = boxes((*BOX, 0, 0.9), (0, 0, 10, 9, 0, 0.8))
    found = match(one, boxes((*BOX, 0, 0.9)))
    assert found.fates == ['kept', 'missed']


def test_what_the_float_one_was_unsure_of_is_not_new():
    found = match(boxes((*BOX, 0, 0.2)), boxes((*BOX, 0, 0.4)))
    assert (found.fates, found.new.tolist()) == ([], [False])


def test_iou_is_that_of_mmdetection():
    rng = np.random.default_rng(0)
    pair = [np.sort(rng.random((n, 2, 2)), 1).reshape(n, 4) for n in (5, 7)]
    expected = bbox_overlaps(*map(torch.from_numpy, pair)).numpy()
    assert iou(*pair) == pytest.approx(expected, abs=1e-9)
    assert iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


def test_sums():
    one = [row(0, boxes((*BOX, 0, 0.9), (20, 0, 30, 10, 1, 0.9)))]
    other = [row(0, boxes((*BOX, 0, 0.9), (60, 0, 70, 10, 2, 0.9)))]
    other.append(row('not in both', boxes()))
    found = changes(one, other, ('a', 'b'))
    assert found['images'] == 1 and found['new'] == 1
    assert found['fates'] == dict.fromkeys(FATES, 0) | dict(kept=1, missed=1)
    names = {c['name']: c for c in found['classes']}
    assert names['a']['kept'] == names['b']['missed'] == names['2']['new'] == 1
    assert found['bins'] == [1, *[0] * 18, 1]
