# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Plain min-max: a range for each weight channel and each activation tensor.

What most toolkits do by default, kept as the reference to beat.
"""

_base_ = './_base_/tensor_rules.py'
rules = [_base_.rules[0], *_base_.rules[2:]]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
]
