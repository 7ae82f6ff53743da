# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaRound (Nagel et al., 2020): learned rounding, layer by layer.

Weights only; activations keep the ranges of the ``uniform`` recipe.
"""

_base_ = './_base_/calibrated.py'
passes = [
    *_base_.passes,
    dict(
        type='Reconstruct',
        unit='layer',
        learn=[dict(type='AdaRound')],
        losses=[dict(type='L2Loss')],
    ),
]
