# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
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
        bbox_head=dict(in_channels=48, fc_out_channels=256, num_classes=10),
        mask_roi_extractor=dict(
            out_channels=48, finest_scale=28, roi_layer=dict(sampling_ratio=2)
        ),
        mask_head=dict(
            num_convs=2, in_channels=48, conv_out_channels=48, num_classes=10
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=300, max_per_img=200),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.35)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=60), rcnn=dict(max_per_img=30)
    ),
)
