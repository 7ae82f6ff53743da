# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""SubSetQ (Oh et al., 2022): non-uniform weights of additive powers of two.

Every layer has the subset of values that fits it best. Weights of 2 to 4
bits; activations as in QDrop.
"""

_base_ = './qdrop.py'
rules = [
    dict(
        match='*',
        weight=dict(type='SubsetQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    *_base_.rules[1:3],  # inputs of grouped convolutions and products
    dict(
        match='@stem',
        weight=dict(type='UniformQuantizer', bits=8, granularity='channel'),
        act=dict(bits=8),
    ),
    _base_.rules[-1],
]
pass_args = dict(
    Reconstruct=dict(
        learn=[dict(type='SubsetMultipliers'), dict(type='LearnedSteps')]
    )
)
