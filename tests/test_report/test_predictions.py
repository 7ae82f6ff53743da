# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is kept of the outputs of a test."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from report_kit import boxes, row

from mmdet_ptq.errors import PTQError
from mmdet_ptq.report.predictions import (
    MOST,
    as_coco,
    as_results,
    packed,
    row_of,
    unique,
    unpacked,
)


def output(scores, corners=None, labels=None, **fields):
    count = len(scores)
    if corners is None:
        corners = torch.tensor([[1.0, 2.0, 5.0, 9.0]]).repeat(count, 1)
    sample = DetDataSample(
        metainfo=dict(img_id=7, img_path='/a/b.png', ori_shape=(30, 40))
    )
    sample.pred_instances = InstanceData(
        bboxes=corners,
        scores=torch.tensor(scores),
        labels=torch.zeros(count, dtype=torch.long)
        if labels is None
        else torch.tensor(labels),
        **fields,
    )
    return sample


def test_the_surest_come_first_and_the_rest_is_left():
    scores = torch.linspace(0, 1, MOST + 20).tolist()
    found = row_of(output(scores), 0)
    assert (found.key, found.path, found.size) == ('7', '/a/b.png', (30, 40))
    assert len(found.found) == MOST and found.truth is None
    assert found.found.scores.tolist() == pytest.approx(
        sorted(scores, reverse=True)[:MOST]
    )


def test_objects_and_what_is_to_be_ignored():
    sample = output([0.5], labels=[2])
    sample.gt_instances = InstanceData(
        bboxes=np.array([[0.0, 0.0, 4.0, 4.0]]), labels=np.array([1])
    )
    sample.ignored_instances = InstanceData(
        bboxes=np.array([[5.0, 5.0, 9.0, 9.0]]), labels=np.array([0])
    )
    found = row_of(sample, 0)
    assert found.truth.labels.tolist() == [1, 0]
    assert found.truth.crowd.tolist() == [False, True]
    assert found.found.labels.tolist() == [2]


def test_masks_without_boxes_have_boxes_around_them():
    """As SOLO predicts: all of its boxes are zeros."""
    masks = torch.zeros(1, 10, 10, dtype=torch.bool)
    masks[0, 2:5, 3:8] = True
    found = row_of(output([0.9], torch.zeros(1, 4), masks=masks), 0)
    assert found.found.corners.tolist() == [[3, 2, 8, 5]]


def test_nothing_found():
    found = row_of(output([], torch.zeros(0, 4)), 0)
    assert len(found.found) == 0 and found.found.corners.shape == (0, 4)


def test_outputs_of_another_kind_are_named():
    with pytest.raises(PTQError, match='have no pred_instances'):
        row_of(DetDataSample(), 0)


def test_an_image_that_two_ranks_had_counts_once():
    one = row(1, boxes())
    assert [r.key for r in unique([one, row(2, boxes()), one])] == ['1', '2']


def test_rows_are_stored_and_read(tmp_path):
    some = [row('a', boxes((1, 2, 3, 4, 0, 0.5))), row('b', boxes(), boxes())]
    for rows in (some, []):
        torch.save(packed(rows), tmp_path / 'rows.pth')
        saved = torch.load(tmp_path / 'rows.pth', weights_only=True)
        found = unpacked(saved)
        for one, other in zip(found, rows, strict=True):
            assert (one.key, one.size) == (other.key, other.size)
            for a, b in ((one.found, other.found), (one.truth, other.truth)):
                assert (a is None) == (b is None)
                for name in vars(b) if b else ():
                    x, y = getattr(a, name), getattr(b, name)
                    assert x.dtype == y.dtype and (x == y).all()


def test_as_files_of_coco():
    found = boxes((1, 2, 4, 8, 1, 0.5))
    truth = boxes((0, 0, 3, 2, 0, 1), (5, 5, 9, 9, 1, 1), crowd=[1])
    rows = [row('a', boxes(), boxes()), row('b', found, truth)]
    data = as_coco(rows, ['x', 'y'])
    assert [one['id'] for one in data['images']] == [0, 1]
    assert [one['iscrowd'] for one in data['annotations']] == [0, 1]
    assert data['annotations'][0] == dict(
        id=1, image_id=1, category_id=0, bbox=[0, 0, 3, 2], area=6, iscrowd=0
    )
    assert as_results(rows) == [
        dict(image_id=1, category_id=1, score=0.5, bbox=[1, 2, 3, 6])
    ]
