# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', './settings.py']
