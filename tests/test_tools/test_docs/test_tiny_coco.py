# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""MMDetection's own dataset reads the tiny one."""

import pickle

import numpy as np
from mmdet.datasets import CocoDataset

from tools.docs.tiny_coco import (
    ANNOTATIONS,
    IMAGES,
    PROPOSALS,
    make_tiny_coco,
)


def read(folder, classes):
    return CocoDataset(
        data_root=str(folder),
        ann_file=ANNOTATIONS,
        data_prefix=dict(img=IMAGES),
        proposal_file=PROPOSALS,
        metainfo=dict(classes=classes),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )


def test_mmdetection_reads_it(tmp_path):
    classes = ('a', 'b', 'c', 'd', 'e')
    make_tiny_coco(tmp_path / 'set', classes, (48, 80), 3)
    dataset = read(tmp_path / 'set', classes)
    assert len(dataset) == 3
    item = dataset[0]
    assert item['img'].shape == (48, 80, 3)
    assert item['gt_bboxes_labels'].tolist() == [0, 2, 4]
    # a mask fills its box
    x1, y1, x2, y2 = item['gt_bboxes'].tensor[0].int().tolist()
    mask = item['gt_masks'].to_ndarray()[0]
    assert mask.sum() == mask[y1:y2, x1:x2].sum() == (x2 - x1) * (y2 - y1) > 0
    boxes = item['proposals']['bboxes']
    assert boxes.dtype == np.float32 and len(boxes) == 64
    assert (boxes >= 0).all() and (boxes <= [80, 48, 80, 48]).all()


def test_one_class_and_the_same_numbers_each_time(tmp_path):
    for name in 'ab':
        make_tiny_coco(tmp_path / name, ('only',), (32, 32))
        dataset = read(tmp_path / name, ('only',))
        assert dataset[1]['gt_bboxes_labels'].tolist() == [0, 0, 0]
    texts = [(tmp_path / n / ANNOTATIONS).read_text() for n in 'ab']
    assert texts[0] == texts[1]
    images = [(tmp_path / n / IMAGES / '1.png').read_bytes() for n in 'ab']
    assert images[0] == images[1]
    found = pickle.loads((tmp_path / 'a' / PROPOSALS).read_bytes())
    assert list(found) == ['images/0.png', 'images/1.png']
