# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/retinanet_r50_fpn_2x_coco.py'
quant_cfg = dict(bits='w3a3')
