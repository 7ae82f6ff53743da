# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""SubSetQ (Oh et al., 2022): non-uniform weights of additive powers of two.

Every layer has the subset of values that fits it best. Weights of 2 to 4
bits; activations as in QDrop.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='SubsetQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    dict(match='@grouped', act=dict(granularity='group')),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(
        match='@stem',
        weight=dict(type='UniformQuantizer', bits=8, granularity='channel'),
        act=dict(bits=8),
    ),
    dict(match=['@prediction', '@offset'], skip=True),
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(type='SetRanges', weight_observer=dict(type='LpObserver', p=2.0)),
    dict(type='CorrectBias'),
    dict(
        type='Reconstruct',
        learn=[dict(type='SubsetMultipliers'), dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss')],
        drop_prob=0.5,
    ),
]
