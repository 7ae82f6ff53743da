# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A range for each weight channel, and one for each activation tensor.

Inputs of grouped convolutions have one for each group, which costs nothing.
"""

_base_ = './rules.py'
rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer'),
    ),
    _base_.rules[1],
    *_base_.rules[-2:],
]
