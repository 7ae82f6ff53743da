# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``gptq_codebook``, then learned rounding among the values it has found.

The values themselves stay; steps are learned where inputs have equal ones.
"""

_base_ = './gptq_codebook.py'
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
