# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# mmdet's yolof_r50-c5 model made slim. It is written out because that file
# brings the COCO data and schedule with it, and two bases must not set the
# same key. Digits are small, so the single level has stride 8 in place of
# 32: the features are those of stage 3, dilated in place of strided.
_base_ = ['./_base_/digits_detection.py']
model = dict(
    type='YOLOF',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=50,
        num_stages=3,
        base_channels=16,
        stem_channels=16,
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        out_indices=(2,),
        frozen_stages=2,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=None,
    ),
    neck=dict(
        type='DilatedEncoder',
        in_channels=256,
        out_channels=96,
        block_mid_channels=48,
        num_residual_blocks=4,
        block_dilations=[2, 4, 6, 8],
    ),
    bbox_head=dict(
        type='YOLOFHead',
        num_classes=10,
        in_channels=96,
        num_cls_convs=1,
        num_reg_convs=2,
        reg_decoded_bbox=True,
        anchor_generator=dict(
            type='AnchorGenerator',
            ratios=[1.0],
            scales=[1.5, 3, 5, 8, 12],
            strides=[8],
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[1.0, 1.0, 1.0, 1.0],
            add_ctr_clamp=True,
            ctr_clamp=32,
        ),
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0,
        ),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='UniformAssigner', pos_ignore_thr=0.15, neg_ignore_thr=0.7
        ),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=300,
        min_bbox_size=0,
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.6),
        max_per_img=100,
    ),
)
