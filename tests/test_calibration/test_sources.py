# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Calibration images from MMDetection's own data configs."""

import os

import cv2
import numpy as np
import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_ptq.calibration import from_config
from mmdet_ptq.calibration.sources import images_below
from mmdet_ptq.errors import CalibrationError
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


def test_text_that_the_test_images_come_with(tiny):
    """For detectors that are told what to find; train sets have none."""
    register_all_modules()
    cfg = Config.fromfile(tiny.config['retinanet'])
    cfg.test_dataloader.dataset.return_classes = True
    cfg.test_dataloader.dataset.pipeline[-1].meta_keys += ('text',)
    images = from_config(cfg, Calibration(num_samples=2))
    for _, batch in images.batches():
        assert batch['data_samples'][0].text == tiny.classes


def test_images_of_a_folder(tmp_path):
    """Links are followed; folders and other programs' files do not count."""
    root, other = tmp_path / 'root', tmp_path / 'other'
    for folder in (root / 'b.png', root / '.thumbnails', other / 'deep'):
        folder.mkdir(parents=True)
    image = np.full((4, 4, 3), 100, np.uint8)
    for path in (
        *(root / 'c.png', root / 'b.png' / 'a.JPG', other / 'deep' / 'z.bmp'),
        *(root / '._c.png', root / '.thumbnails' / 'd.png'),
    ):
        path.write_bytes(cv2.imencode('.png', image)[1])
    (root / 'text.txt').touch()
    (root / 'linked').symlink_to(other)
    (root / 'again').symlink_to(other)
    (other / 'deep' / 'loop').symlink_to(root)
    (root / 'gone.png').symlink_to(root / 'nowhere.png')
    found = [os.path.relpath(p, root) for p in images_below(root)]
    # a broken link is an image that cannot be read, which a run says
    assert found == ['again/deep/z.bmp', 'b.png/a.JPG', 'c.png', 'gone.png']
    (tmp_path / 'link').symlink_to(root)
    assert len(images_below(tmp_path / 'link')) == 4


@pytest.mark.parametrize(
    ('dataset', 'says'),
    [
        (
            dict(type='MultiImageMixDataset', dataset=[dict(type='A')]),
            r'train_dataloader\.dataset\.dataset must be .* a list.*Concat',
        ),
        (
            dict(type='RepeatDataset', dataset='voc'),
            r'dataset\.dataset must be .* got a str',
        ),
        (
            dict(type='ConcatDataset', datasets=[dict(type='A'), ['b']]),
            r'dataset\.datasets\[1\] must be .* got a list',
        ),
        (
            dict(type='ConcatDataset', datasets=dict(type='A')),
            r'dataset\.datasets must be a list of configs, got a',
        ),
        ([dict(type='A')], r'train_dataloader\.dataset must be .* got a list'),
    ],
)
def test_wrapper_over_something_else(dataset, says):
    cfg = Config(
        dict(
            train_dataloader=dict(dataset=dataset),
            test_dataloader=dict(dataset=dict(type='A', pipeline=[])),
        )
    )
    with pytest.raises(CalibrationError, match=says):
        from_config(cfg, Calibration())


def test_objects_where_they_are_asked_for(tiny):
    """The same images in the same order, for any number of them."""
    register_all_modules()
    cfg = Config.fromfile(tiny.config['retinanet'])
    few = from_config(cfg, Calibration(num_samples=2, seed=5))
    more = from_config(cfg, Calibration(num_samples=4, seed=5), True)
    assert more.indices[:2] == few.indices
    for i in range(2):
        bare, whole = few.load(i), more.load(i)
        assert (bare['inputs'][0] == whole['inputs'][0]).all()
        (sample,) = whole['data_samples']
        assert len(sample.instances) == len(sample.gt_instances) == 3
        assert 'instances' not in bare['data_samples'][0]
    assert more.source.metainfo['classes'] == tiny.classes
    # the config is left as it was
    keys = cfg.test_dataloader.dataset.pipeline[-1].meta_keys
    assert 'instances' not in keys
