# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    './_base_/digits_instance.py',
]
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=32,
        depths=[2, 2, 2, 2],
        num_heads=[2, 2, 4, 8],
        window_size=7,
        mlp_ratio=3,
        drop_path_rate=0.0,
        frozen_stages=2,
        out_indices=(0, 1, 2, 3),
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=48),
    rpn_head=dict(
        in_channels=48, feat_channels=48, anchor_generator=dict(scales=[3])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=48, finest_scale=28, roi_layer=dict(sampling_ratio=2)
        ),
        bbox_head=[
            dict(
                type='Shared2FCBBoxHead',
                in_channels=48,
                fc_out_channels=192,
                roi_feat_size=7,
                num_classes=10,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=stds,
                ),
                reg_class_agnostic=True,
                loss_cls=dict(
                    type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
                ),
                loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
            )
            for stds in (
                [0.1, 0.1, 0.2, 0.2],
                [0.05, 0.05, 0.1, 0.1],
                [0.033, 0.033, 0.067, 0.067],
            )
        ],
        mask_roi_extractor=dict(
            out_channels=48, finest_scale=28, roi_layer=dict(sampling_ratio=2)
        ),
        mask_head=dict(
            num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=thr,
                    neg_iou_thr=thr,
                    min_pos_iou=thr,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=dict(
                    type='RandomSampler',
                    num=32,
                    pos_fraction=0.35,
                    neg_pos_ub=-1,
                    add_gt_as_proposals=True,
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for thr in (0.5, 0.6, 0.7)
        ],
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60), rcnn=dict(max_per_img=30)
    ),
)
