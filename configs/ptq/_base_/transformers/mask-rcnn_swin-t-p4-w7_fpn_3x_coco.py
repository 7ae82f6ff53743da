# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = [
    'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py',
    './settings.py',
]
