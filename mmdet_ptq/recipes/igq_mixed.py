# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT on widths that fit the detector's outputs, tensor by tensor."""

_base_ = './igq_vit.py'
passes = [
    *_base_.passes[:2],
    dict(type='AllocateBits'),
    *_base_.passes[2:],
]
