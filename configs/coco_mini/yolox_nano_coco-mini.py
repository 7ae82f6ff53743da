# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# MMDetection's YOLOX-nano on a small part of COCO: COCO-format
# `instances_{train,val}.json` with images in `train/` and `val/`.
_base_ = 'mmdet::yolox/yolox_nano_8xb8-300e_coco.py'

data_root = 'data/coco_mini/'
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        dataset=dict(
            data_root=data_root,
            ann_file='instances_train.json',
            data_prefix=dict(img='train/'),
        )
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        ann_file='instances_val.json',
        data_prefix=dict(img='val/'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'instances_val.json')
test_evaluator = val_evaluator
