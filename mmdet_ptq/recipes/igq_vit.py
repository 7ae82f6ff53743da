# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT (Moon et al., CVPR 2024): groups that each image makes anew.

The channels of every input of a linear layer take the one of 8 grids with
which their extremes in this image cost least, and so do the rows of every
softmax. Weights have a range for each output channel. To 4 bits it leaves out
0.05 % of the values at either end, with 5 and 6 bits 0.001 %, as in the paper,
and with more bits nothing. Convolutions and the other operands of attention
are uniform.
"""

_base_ = './_base_/rules.py'
rules = [
    *_base_.rules[:-2],
    dict(match='@linear', act=dict(type='InstanceGroupQuantizer')),
    dict(
        match='@softmax',
        act=dict(type='InstanceGroupQuantizer', granularity='row'),
    ),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(
        type='SetRanges',
        weight_observer=dict(
            type='PercentileObserver',
            percentile={'4': 0.9995, '6': 0.99999, '8': 1.0},
        ),
    ),
]
