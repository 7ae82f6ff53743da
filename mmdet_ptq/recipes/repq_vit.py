# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""RepQ-ViT (Li et al., ICCV 2023): grids of channels behind norms, free.

Weights have a range for each channel, activations one for the tensor, and
what a softmax gives has powers of the root of 2. Ranges lie between two
quantiles, of three pairs the one of least squared error.
"""

_base_ = './_base_/tensor_rules.py'
rules = [
    *_base_.rules[:2],
    dict(match='@softmax', act=dict(type='LogQuantizer', base='sqrt2')),
    *_base_.rules[2:],
]
_observer = dict(
    type='PercentileObserver', percentile=[0.999, 0.9999, 0.99999]
)
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='ReparametrizeNorm'),
    dict(type='Observe', observer=_observer),
    dict(type='SetRanges', weight_observer=_observer),
]
