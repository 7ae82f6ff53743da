# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
# Table S1: backbone and neck only.
_base_ = '../_base_/yolof_r50-c5_8xb8-1x_coco.py'
quant_cfg = dict(rules=[dict(match='@head', skip=True)])
