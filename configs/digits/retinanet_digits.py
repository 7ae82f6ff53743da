# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    './_base_/digits_detection.py',
]
model = dict(
    backbone=dict(
        base_channels=16,
        stem_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64),
    bbox_head=dict(
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=2),
    ),
    test_cfg=dict(nms_pre=300),
)
