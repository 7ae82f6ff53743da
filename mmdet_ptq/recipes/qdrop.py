# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""QDrop (Wei et al., 2022): rounding and steps at once, with dropping.

Half of the elements of a unit's input and of its activations are quantized
in a step, a new half each time.
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
        learn=[dict(type='AdaRound'), dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss')],
        drop_prob=0.5,
    ),
]
