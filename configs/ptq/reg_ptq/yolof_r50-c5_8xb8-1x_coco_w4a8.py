# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/yolof_r50-c5_8xb8-1x_coco.py'
quant_cfg = dict(bits='w4a8')
