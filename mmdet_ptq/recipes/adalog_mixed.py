# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaLog on widths that fit the detector's outputs, tensor by tensor."""

_base_ = './adalog.py'
passes = [
    *_base_.passes[:4],
    dict(type='AllocateBits'),
    *_base_.passes[4:],
]
