# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaQuant (Hubara et al., 2021): weights, biases and ranges, by layer.

Layers are visited one after the other, each on the inputs that the
quantized layers before it give. The published default, float inputs of all
layers at once, is `order='parallel', input_distribution='float'` of
`Reconstruct`.
"""

rules = [
    dict(
        match='*',
        weight=dict(type='UniformQuantizer', granularity='channel'),
        act=dict(type='UniformQuantizer', per_level=True),
    ),
    dict(match='@grouped', act=dict(granularity='group')),
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(match='@stem', weight=dict(bits=8), act=dict(bits=8)),
    dict(match=['@prediction', '@offset'], skip=True),
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.4)),
    dict(type='SetRanges', weight_observer=dict(type='LpObserver', p=2.0)),
    dict(type='CorrectBias'),
    dict(
        type='Reconstruct',
        unit='layer',
        learn=[dict(type='LearnedWeights')],
        losses=[dict(type='L2Loss')],
        iters=1000,
    ),
]
