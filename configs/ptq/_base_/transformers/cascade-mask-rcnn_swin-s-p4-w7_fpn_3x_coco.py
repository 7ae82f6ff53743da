# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = './cascade-mask-rcnn_swin-t-p4-w7_fpn_3x_coco.py'
model = dict(backbone=dict(depths=[2, 2, 18, 2]))
