# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""DetPTQ (Niu et al., 2023): an exponent of the Lp search for each unit.

Each is the one with which the detector's outputs are nearest to the float
ones.
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
    dict(type='ChooseExponents'),
    dict(type='CorrectBias'),
]
