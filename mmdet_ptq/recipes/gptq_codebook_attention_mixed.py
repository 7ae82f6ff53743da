# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``gptq_codebook_attention`` on widths that fit the detector's outputs."""

_base_ = './gptq_codebook_attention.py'
passes = [
    *_base_.passes[:4],
    dict(type='AllocateBits'),
    *_base_.passes[4:],
]
