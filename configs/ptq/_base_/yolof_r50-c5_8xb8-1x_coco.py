# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = ['mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py', './reg_ptq.py']
