# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""BRECQ (Li et al., 2021): learned rounding block by block, then steps.

First all weights, with float activations; then the steps of the
activations, from float inputs, by an L2.4 loss.
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
        learn=[dict(type='AdaRound')],
        losses=[dict(type='FisherLoss', damping=0.8)],
        activations=False,
    ),
    dict(
        type='Reconstruct',
        learn=[dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss', p=2.4)],
        input_distribution='float',
    ),
]
