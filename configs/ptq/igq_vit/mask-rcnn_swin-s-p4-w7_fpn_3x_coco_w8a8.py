# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/transformers/mask-rcnn_swin-s-p4-w7_fpn_3x_coco.py'
quant_cfg = dict(recipe='igq_vit', bits='w8a8')
