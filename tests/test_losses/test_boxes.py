# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Boxes beside those of the float model, by hand."""

import pytest
import torch
from head_rows import head
from mmdet.structures.bbox import bbox_overlaps

from mmdet_ptq.losses.boxes import box_errors, overlapping, pick_boxes

#: decoded by ten pixels a unit, and one for each row
RAW = torch.tensor([[0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 1.0]])
ROWS = torch.tensor([0, 3])


@pytest.fixture
def target():
    output = head(torch.zeros(4, 2), torch.zeros(4, 4))
    return output, dict(
        rows=ROWS,
        boxes=RAW,
        corners=output.decode(RAW, ROWS),
        hc=torch.tensor([True, False]),
    )


def test_boxes_of_the_class():
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    rows, labels = torch.tensor([1, 0]), torch.tensor([2, 1])
    found = pick_boxes(boxes, rows, labels)
    assert found.tolist() == [[20, 21, 22, 23], [4, 5, 6, 7]]
    assert torch.equal(pick_boxes(boxes[0], rows, labels), boxes[0, [1, 0]])


def test_overlap(target):
    output, one = target
    assert one['corners'].tolist() == [[0, 0, 10, 20], [3, 3, 13, 13]]
    # half as wide; half of it beside it: 5 x 10 of 150
    moved = torch.tensor([[0.0, 0.0, 0.5, 2.0], [0.5, 0.0, 1.5, 1.0]])
    for least, expected in (
        (0.3, [True, True]),
        (0.45, [True, False]),
        (0.6, [False, False]),
    ):
        assert overlapping(output, moved, one, least).tolist() == expected
    del one['corners']
    assert overlapping(output, moved, one, 0.6).tolist() == [True, True]


def test_errors_of_boxes(target):
    output, one = target
    moved = RAW + torch.tensor([[0.0, 0.5, -0.5, 0.0], [0.0, 0.25, 0.0, 0.0]])
    found = box_errors(output, moved, one, 'raw')
    assert found.tolist() == [[0, 0.5, 0.5, 0], [0, 0.25, 0, 0]]
    # in units of 10 x 20 and 10 x 10 pixels
    found = box_errors(output, moved, one, 'decoded')
    assert found.tolist() == [[0, 0.25, 0.5, 0], [0, 0.25, 0, 0]]
    del one['corners']
    with pytest.raises(ValueError, match='bbox_head has no decode'):
        box_errors(output, moved, one, 'decoded')


def test_overlap_is_that_of_mmdetection():
    """To the bit; also of boxes without area or turned over."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 4, generator=generator) * 9
    a[0, 2:] = a[0, :2]
    output = head(torch.zeros(50, 2), b, decode=lambda boxes, rows: boxes)
    wanted = bbox_overlaps(a, b, is_aligned=True)
    target = dict(corners=a, rows=torch.arange(50), hc=torch.ones(50) > 0)
    for least in (0.0, *wanted.tolist()):
        found = overlapping(output, b, target, least)
        assert torch.equal(found, wanted >= least)
