# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Plain min-max: a range for each weight channel and each activation tensor.

What most toolkits do by default, kept as the reference to beat.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer'),
    ),
    dict(match='@stem', weight=dict(bits=8), act=dict(bits=8)),
    dict(match=['@prediction', '@offset'], skip=True),
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
]
