# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Uniform; stem and positions in 8 bits, predictions and offsets float.

The last two rules are what recipes with other quantizers keep.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    dict(match='@grouped', act=dict(granularity='group')),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(match=['@stem', '@position'], weight=dict(bits=8), act=dict(bits=8)),
    dict(match=['@prediction', '@offset'], skip=True),
]
