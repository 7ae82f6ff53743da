# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT (Moon et al., CVPR 2024): groups that each image makes anew.

The channels of every input of a linear layer take the one of 8 grids with
which their extremes in this image cost least, and so do the rows of every
softmax. Weights have a range for each output channel that leaves out 0.05 %
at either end, which the paper gives for 4 bits; for 6 bits it gives 0.001 %
(``percentile=0.99999``), for 8 bits ``percentile=1`` is meant. Convolutions
and the other operands of attention are uniform.
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
        weight_observer=dict(type='PercentileObserver', percentile=0.9995),
    ),
]
