# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reg-PTQ (2024): the whole detector, heads too, guided by its outputs.

The loss is the error of a unit's output, weighed by the Fisher information,
plus the filtered difference of the detector's outputs. Weights of the heads
have learned logarithmic levels. The Fisher weights are damped: from a few
images, the undamped ones rest on few positions.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    dict(match='@grouped', act=dict(granularity='group')),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(
        match=['@rpn', '@head', '@mask'],
        weight=dict(type='LLAQuantizer', granularity='channel'),
    ),
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
        learn=[
            dict(type='AdaRound'),
            dict(type='LearnedSteps'),
            dict(type='LearnedCodebook'),
        ],
        losses=[
            dict(type='FisherLoss', damping=0.8),
            dict(type='DetectionLoss'),
        ],
        drop_prob=0.5,
    ),
]
