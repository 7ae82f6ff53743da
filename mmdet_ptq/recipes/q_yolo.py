# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Q-YOLO (Wang et al., 2023): one-sided ranges of activations.

The lower end stays at the observed minimum, that of SiLU; the upper end is
cut where the squared error on a histogram is least. Weights have min-max
ranges.
"""

_base_ = './_base_/tensor_rules.py'
rules = [_base_.rules[0], *_base_.rules[2:]]
passes = [
    dict(type='FoldBatchNorm'),
    dict(
        type='Observe', observer=dict(type='LpObserver', p=2.0, search='upper')
    ),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
]
