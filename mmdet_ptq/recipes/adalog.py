# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaLog (Wu et al., ECCV 2024): powers of a base that is searched.

What a softmax gives, and what a GELU gives once it is shifted, has powers of
a base of its own for each layer; all other grids are searched for what they
do to the outputs of their layer, in the float detector. Inputs behind norms
have a grid for each channel. The stem has 8 bits, for its weight too, and
predictions are float; with ``scope='repq_det'`` both are as in the paper.
"""

_base_ = './_base_/tensor_rules.py'
rules = [
    *_base_.rules[:2],
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(
        match='@softmax',
        act=dict(
            type='AdaLogQuantizer', granularity='tensor', fixed_scale=1.0
        ),
    ),
    dict(match='@gelu', act=dict(type='AdaLogQuantizer')),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='ReparametrizeNorm', ranges='lp', p=2.0),
    dict(type='ShiftGelu'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.0)),
    dict(type='SetRanges'),
    # the paper has keep=16, each=8, steps=5, rounds=3, and takes ten times as
    # long
    dict(type='SearchScales', keep=8, steps=4, rounds=2, rows=1024),
    dict(type='CorrectBias'),
]
