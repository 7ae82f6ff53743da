# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/faster-rcnn_r50_fpn_1x_voc0712.py'
quant_cfg = dict(bits='w2a4')
