# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PTQ for vision transformers (Liu et al., NeurIPS 2021).

Ranges are searched for the correlation of each layer's output with the float
one, and in attention for the order of the logits too. The mean output error is
taken out of the biases. The paper's grids are symmetric, with one for the
whole weight of a linear layer; here they are affine, with one for each channel
of a weight and for each head of a product.
"""

_base_ = './_base_/tensor_rules.py'
rules = [
    *_base_.rules[:2],
    dict(match='@matmul', act=dict(granularity='channel')),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
    dict(
        type='SearchScales',
        objective='pearson',
        candidates='ranges',
        fractions=(0.5, 1.2),
        count=100,
        rounds=3,
    ),
    dict(type='CorrectBias'),
]
