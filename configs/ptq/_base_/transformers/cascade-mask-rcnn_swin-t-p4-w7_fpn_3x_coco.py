# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# The cascade of the Swin authors, which MMDetection has no config for: four
# convolutions and one fully connected layer in each box head, batch norms,
# boxes of each class. Their checkpoints are converted by
# `python -m tools.data.convert_swin_checkpoint`.
_base_ = './mask-rcnn_swin-t-p4-w7_fpn_3x_coco.py'
_stages = [
    (0.5, [0.1, 0.1, 0.2, 0.2]),
    (0.6, [0.05, 0.05, 0.1, 0.1]),
    (0.7, [0.033, 0.033, 0.067, 0.067]),
]
model = dict(
    type='CascadeRCNN',
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=stds,
                ),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_cls=dict(
                    type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0
                ),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for _, stds in _stages
        ],
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner',
                    pos_iou_thr=threshold,
                    neg_iou_thr=threshold,
                    min_pos_iou=threshold,
                    match_low_quality=False,
                    ignore_iof_thr=-1,
                ),
                sampler=dict(
                    type='RandomSampler',
                    num=512,
                    pos_fraction=0.25,
                    neg_pos_ub=-1,
                    add_gt_as_proposals=True,
                ),
                mask_size=28,
                pos_weight=-1,
                debug=False,
            )
            for threshold, _ in _stages
        ],
    ),
)
