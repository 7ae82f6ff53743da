# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaRound (Nagel et al., 2020): learned rounding, layer by layer.

Weights only; activations keep the ranges of the ``uniform`` recipe.
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
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(type='SetRanges', weight_observer=dict(type='LpObserver', p=2.0)),
    dict(type='CorrectBias'),
    dict(
        type='Reconstruct',
        unit='layer',
        learn=[dict(type='AdaRound')],
        losses=[dict(type='L2Loss')],
    ),
]
