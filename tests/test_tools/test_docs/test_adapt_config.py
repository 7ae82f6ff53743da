# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a config keeps of its own on a tiny data set."""

import pytest
from mmengine.config import Config

from mmdet_ptq.testing import config_path
from tools.docs import adapt_config as adapt
from tools.docs.tiny_coco import make_tiny_coco


def load(name):
    return Config.fromfile(config_path('mmdet::' + name))


def test_a_coco_config_stays_what_it_is(tmp_path):
    cfg = load('yolox/yolox_tiny_8xb8-300e_coco.py')
    before = load('yolox/yolox_tiny_8xb8-300e_coco.py')
    assert adapt.adapt(cfg, tmp_path / 'data', (64, 96)) == []
    dataset = cfg.test_dataloader.dataset
    assert dataset.type == 'CocoDataset' and 'metainfo' not in dataset
    assert dataset.data_root == f'{tmp_path / "data"}/'
    (train,) = adapt.leaves(cfg.train_dataloader.dataset)
    assert train.ann_file == dataset.ann_file
    assert cfg.custom_hooks == before.custom_hooks
    assert cfg.model.bbox_head == before.model.bbox_head
    kinds = [t.type for t in before.test_dataloader.dataset.pipeline]
    assert [t.type for t in dataset.pipeline] == kinds
    (resize,) = [t for t in dataset.pipeline if t.type == 'Resize']
    assert resize.scale == (96, 64) and resize.keep_ratio
    (metric,) = cfg.test_evaluator
    assert metric['metric'] == 'bbox'
    assert metric['ann_file'] == str(tmp_path / 'data' / 'annotations.json')


@pytest.mark.parametrize(
    'name, classes, note',
    [
        (
            'pascal_voc/retinanet_r50_fpn_1x_voc0712.py',
            20,
            'CocoDataset for VOCDataset; CocoMetric for VOCMetric',
        ),
        (
            'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
            133,
            'CocoDataset for CocoPanopticDataset; LoadAnnotations for '
            'LoadPanopticAnnotations; no metric for CocoPanopticMetric',
        ),
        (
            'openimages/retinanet_r50_fpn_32xb2-1x_openimages.py',
            601,
            'classes by the head; CocoDataset for OpenImagesDataset; '
            'CocoMetric for OpenImagesMetric',
        ),
        (
            'cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py',
            8,
            'without CityScapesMetric',
        ),
        (
            'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py',
            1,
            'CocoDataset for CrowdHumanDataset; no metric for '
            'CrowdHumanMetric',
        ),
        ('fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py', 80, ''),
        (
            'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi'
            '-0.1-coco.py',
            80,
            '',
        ),
    ],
)
def test_what_cannot_read_it_is_replaced(tmp_path, name, classes, note):
    cfg = load(name)
    notes = adapt.adapt(cfg, tmp_path / 'data', (64, 64))
    assert '; '.join(notes) == note
    for key in ('train_dataloader', 'test_dataloader'):
        for leaf in adapt.leaves(cfg[key].dataset):
            known = adapt.declared_classes(leaf)
            assert len(known) == classes
            built = adapt.DATASETS.build(dict(leaf, pipeline=[]))
            labels = [i['bbox_label'] for i in built[0]['instances']]
            assert labels == [0, classes // 2, classes - 1]
            assert len(built) == 2


def test_no_test_data(tmp_path):
    cfg = load('qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py')
    with pytest.raises(KeyError, match='no test_dataloader'):
        adapt.adapt(cfg, tmp_path, (64, 64))


def test_steps_inside_steps():
    inner = dict(type='Resize', scale=(1333, 800))
    outer = dict(type='ProposalBroadcaster', transforms=[inner])
    pad = dict(type='Pad', size=None, size_divisor=32)
    for step in adapt.steps([outer, pad]):
        adapt.shrink(step, (40, 60))
    assert inner['scale'] == (60, 40) and pad['size'] is None


def test_num_classes():
    model = dict(a=dict(num_classes=0), b=[dict(c=dict(num_classes=7))])
    assert adapt.num_classes(model) == 7
    assert adapt.num_classes(dict(a=1)) == 0


def test_a_type_of_another_format_does_not_read(tmp_path):
    make_tiny_coco(tmp_path, ('a', 'b'), (32, 32))
    leaf = dict(
        type='XMLDataset', metainfo=dict(classes=('a', 'b')), test_mode=True
    )
    assert adapt.point(leaf, tmp_path, ('a', 'b')) == [
        'CocoDataset for XMLDataset'
    ]
    assert leaf['test_mode'] and leaf['metainfo']['classes'] == ('a', 'b')
