# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# mmdet's detr_r50 model made slim. It is written out because that file
# brings the COCO data and schedule with it, and two bases must not set the
# same key. The last stage is dilated in place of strided (stride 16), and
# every image is brought to the one size that the model was trained at. The
# loss of the classes is focal, as in DETR's successors: it needs fewer
# epochs.
_base_ = ['./_base_/digits_detection.py']
model = dict(
    type='DETR',
    num_queries=25,
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
        num_stages=4,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        base_channels=16,
        stem_channels=16,
        out_indices=(3,),
        frozen_stages=2,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        style='pytorch',
        init_cfg=None,
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[512],
        kernel_size=1,
        out_channels=128,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=1,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=128, num_heads=8, dropout=0.0, batch_first=True
            ),
            ffn_cfg=dict(
                embed_dims=128,
                feedforward_channels=384,
                num_fcs=2,
                ffn_drop=0.0,
                act_cfg=dict(type='ReLU', inplace=True),
            ),
        ),
    ),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=128, num_heads=8, dropout=0.0, batch_first=True
            ),
            cross_attn_cfg=dict(
                embed_dims=128, num_heads=8, dropout=0.0, batch_first=True
            ),
            ffn_cfg=dict(
                embed_dims=128,
                feedforward_channels=384,
                num_fcs=2,
                ffn_drop=0.0,
                act_cfg=dict(type='ReLU', inplace=True),
            ),
        ),
        return_intermediate=True,
    ),
    positional_encoding=dict(num_feats=64, normalize=True),
    bbox_head=dict(
        type='DETRHead',
        num_classes=10,
        embed_dims=128,
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=50),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(192, 192), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

max_epochs = 40
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.0003, weight_decay=0.0001),
    clip_grad=dict(max_norm=0.5, norm_type=2),
)
