# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT's grids of activations, and weights that learn their rounding."""

_base_ = './igq_vit.py'
passes = [
    *_base_.passes,
    dict(
        type='Reconstruct',
        learn=[dict(type='AdaRound'), dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss'), dict(type='DetectionLoss')],
        drop_prob=0.5,
    ),
]
