# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    './_base_/digits_detection.py',
]
model = dict(
    backbone=dict(
        base_channels=16,
        stem_channels=16,
        frozen_stages=2,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=48),
    rpn_head=dict(
        in_channels=48, feat_channels=48, anchor_generator=dict(scales=[3])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=48, finest_scale=28, roi_layer=dict(sampling_ratio=2)
        ),
        bbox_head=dict(in_channels=48, fc_out_channels=256, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60), rcnn=dict(max_per_img=30)
    ),
)
