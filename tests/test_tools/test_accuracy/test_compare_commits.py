# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import copy

import pytest

from tools.accuracy.compare_commits import DETECTORS, cells, difference
from tools.accuracy.run_zoo import CELLS
from tools.accuracy.run_zoo import DETECTORS as ZOO_DETECTORS

CELL = dict(
    quantized={'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75},
    storage_mb=dict(float=8.0, quantized=2.0),
    tensors={f'{i}.weight': f'float32[1] {i}' for i in range(6)},
)


def test_cells_are_the_zoo_and_some_that_learn():
    found = cells()
    zoo = {
        f'{detector}_{cell.replace(":", "_")}'
        for detector in ZOO_DETECTORS
        for cell in CELLS
    }
    assert DETECTORS == ZOO_DETECTORS
    assert set(found) - zoo == {
        'retinanet_reg_ptq_w4a4_20-steps',
        'retinanet_pd_quant_w4a4_20-steps',
        'faster-rcnn_qdrop_w4a4_20-steps',
        'detr_qdrop_w4a4_20-steps',
    }
    assert zoo < set(found)


def test_equal_cells():
    assert difference(CELL, copy.deepcopy(CELL)) == []


@pytest.mark.parametrize(
    'part, key, value, said',
    [
        ('quantized', 'coco/bbox_mAP', 0.6, 'coco/bbox_mAP: 0.5 -> 0.6'),
        ('quantized', 'new', 1, 'new: None -> 1'),
        ('storage_mb', 'quantized', 2.5, 'quantized: 2.0 -> 2.5'),
        ('tensors', '3.weight', 'x', '1 of 6 tensors: 3.weight'),
        ('tensors', 'more', 'x', '1 of 7 tensors: more'),
    ],
)
def test_what_differs(part, key, value, said):
    other = copy.deepcopy(CELL)
    other[part][key] = value
    assert difference(CELL, other) == [said]
