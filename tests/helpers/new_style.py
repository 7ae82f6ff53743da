# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A config in MMEngine's new style: types are classes and functions."""

NEW_STYLE = """
from mmengine.config import read_base

with read_base():
    from .new_style_base import *

from mmcv.ops import RoIAlign, nms
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import (
    DetDataPreprocessor, FasterRCNN, FPN, ResNet, RPNHead)
from mmdet.models.losses import CrossEntropyLoss, L1Loss
from mmdet.models.roi_heads import (
    Shared2FCBBoxHead, SingleRoIExtractor, StandardRoIHead)
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmengine.dataset import DefaultSampler
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop
from torch.nn import BatchNorm2d
from torch.optim import SGD

pipeline = [
    dict(type=LoadImageFromFile, backend_args=None),
    dict(type=Resize, scale=(64, 64), keep_ratio=True),
    dict(type=PackDetInputs,
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                    'scale_factor')),
]
test_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CocoDataset, data_root=root, ann_file='val.json',
        data_prefix=dict(img='val/'), metainfo=dict(classes=classes),
        test_mode=True, pipeline=pipeline))
train_dataloader = dict(
    test_dataloader,
    dataset=dict(
        test_dataloader['dataset'], ann_file='train.json',
        data_prefix=dict(img='train/')))
test_cfg = dict(type=TestLoop)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=.01))
test_evaluator = dict(
    type=CocoMetric, ann_file=root + 'val.json', metric='bbox')
model = dict(
    type=FasterRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[120., 120., 120.],
        std=[60., 60., 60.], bgr_to_rgb=False, pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=18, base_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=dict(type=BatchNorm2d),
        style='pytorch'),
    neck=dict(
        type=FPN, in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    rpn_head=dict(
        type=RPNHead, in_channels=16, feat_channels=16,
        anchor_generator=dict(
            type=AnchorGenerator, scales=[4], ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=dict(
            type=SingleRoIExtractor, out_channels=16,
            roi_layer=dict(type=RoIAlign, output_size=7, sampling_ratio=0),
            featmap_strides=[4, 8, 16]),
        bbox_head=dict(
            type=Shared2FCBBoxHead, in_channels=16, fc_out_channels=32,
            roi_feat_size=7, num_classes=3,
            bbox_coder=dict(type=DeltaXYWHBBoxCoder),
            loss_cls=dict(type=CrossEntropyLoss),
            loss_bbox=dict(type=L1Loss))),
    train_cfg=None,
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60, min_bbox_size=0,
                 nms=dict(type=nms, iou_threshold=0.8)),
        rcnn=dict(score_thr=0.0, max_per_img=60,
                  nms=dict(type=nms, iou_threshold=0.7))))
"""
BASE = """
from mmengine.runner import LogProcessor
from mmengine.visualization import LocalVisBackend
from mmdet.visualization import DetLocalVisualizer

default_scope = None
log_processor = dict(type=LogProcessor, window_size=50, by_epoch=True)
visualizer = dict(
    type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)])
classes = {classes!r}
root = {root!r}
"""


def write_new_style(folder, root, classes):
    """Writes a tiny Faster R-CNN into a folder; gives the config's path.

    Args:
        folder (Path): Where to.
        root (Path): Of the images and annotations.
        classes (tuple[str]): Their names.
    """
    base = BASE.format(root=f'{root}/', classes=classes)
    (folder / 'new_style_base.py').write_text(base)
    path = folder / 'new_style.py'
    path.write_text(NEW_STYLE)
    return path
