# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""BRECQ (Li et al., 2021): learned rounding block by block, then steps.

First all weights, with float activations; then the steps of the
activations, from float inputs, by an L2.4 loss.
"""

_base_ = './_base_/calibrated.py'
passes = [
    *_base_.passes,
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
