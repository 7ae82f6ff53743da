# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = '../_base_/transformers/detr_r50_8xb2-150e_coco.py'
quant_cfg = dict(recipe='igq_vit', bits='w6a6')
