# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding to values at any distance from each other.

Weights and inputs have the values of least error (Lloyd, 1982) in place of
equal steps. For 2 to 4 bits; a runtime looks the values up, so it saves memory
and not products.
"""

_base_ = './gptq.py'
rules = [
    dict(
        match='*',
        weight=dict(type='CodebookQuantizer', granularity='channel'),
        act=dict(type='CodebookQuantizer', per_level=True),
    ),
    *_base_.rules[1:3],  # inputs of grouped convolutions and products
    dict(
        match=['@stem', '@position'],
        weight=dict(type='UniformQuantizer', bits=8, granularity='channel'),
        act=dict(type='UniformQuantizer', bits=8),
    ),
    _base_.rules[-1],
]
passes = [*_base_.passes[:-1], dict(type='CompensateRounding', refits=2)]
