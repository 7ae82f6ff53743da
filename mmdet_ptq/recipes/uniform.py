# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The strongest uniform quantization that calibration alone gives.

Ranges minimise the L2.4 error (activations, on histograms) and the L2
error (weights, exactly, for each channel). A grouped convolution, above all
a depthwise one, has an input scale for each group: an output channel reads
one group only, so the scale folds into the weight's and costs nothing. The
heads of an attention are products of their own, each with its own scales. A
head that runs on every pyramid level has a range for each level. The mean
output error that quantized weights make is taken out of the biases.
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
]
