# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""LAPQ (Nahshan et al., 2021): ranges that the detector's loss likes best.

One exponent of the Lp search for all, then Powell's method over all ranges.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    dict(match='@grouped', act=dict(granularity='group')),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(match='@stem', weight=dict(bits=8), act=dict(bits=8)),
    dict(match=['@prediction', '@offset'], skip=True),
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='LAPQ'),
    dict(type='CorrectBias'),
]
