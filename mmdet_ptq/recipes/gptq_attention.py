# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding, and attention that is easier to quantize.

Features and positional encodings are projected apart, and what a softmax
gives is quantized before it is divided. Each query and each key of a head
takes the one of 16 grids that suits it. For DETR and its relatives.
"""

_base_ = './gptq.py'
rules = [
    *_base_.rules[:3],
    dict(
        match=['@query', '@key'],
        act=dict(
            type='InstanceGroupQuantizer', granularity='row', num_groups=16
        ),
    ),
    *_base_.rules[3:],
]
passes = [
    *_base_.passes[:1],
    dict(type='SplitPositions'),
    dict(type='QuantizeNumerator'),
    *_base_.passes[1:],
]
