# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = ['mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py', './reg_ptq.py']
