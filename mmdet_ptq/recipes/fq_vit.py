# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""FQ-ViT (Lin et al., IJCAI 2022): norms and softmax quantized too.

Channels of the input of a layer norm have scales that differ by powers of
two. A softmax is computed from integer logits, and what it gives is a power
of two. Weights have a symmetric range for each channel, all other inputs one
range; all are those of least squared error, one of the four kinds that the
authors' tool offers. The paper quantizes attention to 4 bits, and the rest to
8 (``bits='w8a8s4'``), with the ranges of the data.
"""

_base_ = './_base_/rules.py'
_uniform = dict(type='UniformQuantizer')
rules = [
    dict(
        match='*',
        weight=dict(_uniform, symmetric=True, granularity='channel'),
        act=_uniform,
    ),
    _base_.rules[1],
    dict(match='@norm', act=dict(type='PowerOfTwoQuantizer')),
    dict(
        match='@softmax',
        act=dict(type='LogQuantizer', rounding='whole', fixed_scale=1.0),
    ),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='IntegerSoftmax'),
    dict(type='Observe', observer=dict(type='LpObserver', p=2.0)),
    dict(type='SetRanges'),
]
