# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = ['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py', './reg_ptq.py']
