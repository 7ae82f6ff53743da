# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding, and attention that is easier to quantize.

Features and positional encodings are projected apart, and what a softmax
gives is quantized before it is divided. For DETR and its relatives.
"""

_base_ = './gptq.py'
passes = [
    *_base_.passes[:1],
    dict(type='SplitPositions'),
    dict(type='QuantizeNumerator'),
    *_base_.passes[1:],
]
