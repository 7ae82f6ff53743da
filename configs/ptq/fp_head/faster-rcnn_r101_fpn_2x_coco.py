# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Table S1: backbone and neck only.
_base_ = '../_base_/faster-rcnn_r101_fpn_2x_coco.py'
quant_cfg = dict(rules=[dict(match='@head', skip=True)])
