# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding, then QDrop's learning, which starts from it."""

_base_ = './gptq.py'
passes = [
    *_base_.passes,
    dict(
        type='Reconstruct',
        learn=[dict(type='AdaRound'), dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss')],
        drop_prob=0.5,
        iters=500,
    ),
]
