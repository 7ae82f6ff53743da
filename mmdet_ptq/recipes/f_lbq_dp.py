# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""F-LBQ (ICASSP 2026): bits for groups of 128 channels of the backbone.

Their widths keep what the backbone gives near to the float features, by
dynamic programming. Neck and heads have one width; all grids are uniform.
"""

_base_ = './_base_/calibrated.py'
passes = [
    *_base_.passes[:2],
    dict(
        type='AllocateBits',
        objective='feature',
        scope='@backbone',
        channels=128,
        solver='dp',
    ),
    *_base_.passes[2:],
]
