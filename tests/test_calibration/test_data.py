# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Calibration images from MMDetection's own data configs."""

import cv2
import numpy as np
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_ptq.calibration import from_config
from mmdet_ptq.quant_cfg import Calibration

BOX = (
    '<annotation><size><width>64</width><height>48</height></size>'
    '<object><name>dog</name><difficult>0</difficult><bndbox><xmin>5</xmin>'
    '<ymin>5</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>'
)


def make_voc(root, year, names):
    """Annotated images, their boxes below the least size for training."""
    for folder in ('ImageSets/Main', 'JPEGImages', 'Annotations'):
        (root / year / folder).mkdir(parents=True)
    for name in names:
        image = np.full((48, 64, 3), 100, np.uint8)
        cv2.imwrite(str(root / year / 'JPEGImages' / f'{name}.jpg'), image)
        (root / year / 'Annotations' / f'{name}.xml').write_text(BOX)
    for split in ('trainval', 'test'):
        path = root / year / 'ImageSets' / 'Main' / f'{split}.txt'
        path.write_text('\n'.join(names))


def test_voc(tmp_path, monkeypatch):
    """Its train set is a repeated concatenation with a filter of boxes."""
    register_all_modules()
    make_voc(tmp_path / 'data/VOCdevkit', 'VOC2007', ['a', 'b'])
    make_voc(tmp_path / 'data/VOCdevkit', 'VOC2012', ['c'])
    config = tmp_path / 'config.py'
    config.write_text("_base_ = 'mmdet::_base_/datasets/voc0712.py'\n")
    monkeypatch.chdir(tmp_path)
    images = from_config(
        Config.fromfile(str(config)), Calibration(num_samples=3)
    )
    assert sorted(n.rpartition('/')[2] for n in images.names) == [
        'a.jpg',
        'b.jpg',
        'c.jpg',
    ]
    batches = [batch for _, batch in images.batches()]
    assert not images.skipped
    assert {tuple(b['inputs'][0].shape) for b in batches} == {(3, 600, 800)}
