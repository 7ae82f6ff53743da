# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""QDrop (Wei et al., 2022): rounding and steps at once, with dropping.

Half of the elements of a unit's input and of its activations are quantized
in a step, a new half each time.
"""

_base_ = './_base_/calibrated.py'
passes = [
    *_base_.passes,
    dict(
        type='Reconstruct',
        learn=[dict(type='AdaRound'), dict(type='LearnedSteps')],
        losses=[dict(type='L2Loss')],
        drop_prob=0.5,
    ),
]
