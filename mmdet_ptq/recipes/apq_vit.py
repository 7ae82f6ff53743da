# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""APQ-ViT (Ding et al., ACM MM 2022): scales that blocks are searched for.

Ranges are shares of the extremes, the one with which the output of the block
errs least, weighed by damped gradients as in ``ptq4vit``; the smaller half of
the errors is left out. All channels of a weight take the same share, so a
range of least error, which each channel has before, stays where no share is
better. What a softmax gives has one grid for all heads, without codes below 0.
No code is published: this is the form of the abstract, and grids and search
are those of ``ptq4vit``.
"""

_base_ = './_base_/tensor_rules.py'
rules = [
    *_base_.rules[:2],
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(
        match='@softmax',
        act=dict(
            type='UniformQuantizer', symmetric=False, granularity='tensor'
        ),
    ),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(type='SetRanges', weight_observer=dict(type='LpObserver', p=2.0)),
    # the paper goes round three times, which takes three times as long
    dict(
        type='SearchScales',
        objective='block',
        candidates='ranges',
        count=20,
        rounds=1,
    ),
]
