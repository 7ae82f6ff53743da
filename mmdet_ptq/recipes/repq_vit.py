# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""RepQ-ViT (Li et al., ICCV 2023): grids of channels behind norms.

They are folded into the norm and the layers behind it, which costs nothing;
where others read the norm too, as in DETR, these layers scale and shift their
input. Weights have a range for each channel, other activations one for the
tensor, and what a softmax gives has powers of the root of 2. Ranges lie
between two quantiles, of three pairs the one of least squared error. The stem
has 8 bits, for its weight too, and predictions are float; with
``scope='repq_det'`` both are as in the authors' code.
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
