# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = ['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py', './reg_ptq.py']
