# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reg-PTQ (2024): the whole detector, heads too, guided by its outputs.

The loss is the error of a unit's output, weighed by the Fisher information,
plus the filtered difference of the detector's outputs. Weights of the heads
have learned logarithmic values. The Fisher weights are damped: from a few
images, the undamped ones rest on few positions.
"""

_base_ = './qdrop.py'
rules = [
    *_base_.rules[:-2],
    dict(
        match=['@rpn', '@head', '@mask'],
        weight=dict(type='LLAQuantizer', granularity='channel'),
    ),
    *_base_.rules[-2:],  # the stem, predictions and offsets
]
pass_args = dict(
    Reconstruct=dict(
        learn=[
            dict(type='AdaRound'),
            dict(type='LearnedSteps'),
            dict(type='LearnedCodebook'),
        ],
        losses=[
            dict(type='FisherLoss', damping=0.8),
            dict(type='DetectionLoss'),
        ],
    )
)
