# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges of least error and corrected biases, for passes that learn."""

_base_ = './rules.py'
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(type='SetRanges', weight_observer=dict(type='LpObserver', p=2.0)),
    dict(type='CorrectBias'),
]
