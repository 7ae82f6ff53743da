# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding on widths that fit the detector's outputs."""

_base_ = './gptq.py'
passes = [
    *_base_.passes[:2],
    dict(type='AllocateBits'),
    *_base_.passes[2:],
]
