# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PTQ4ViT (Yuan et al., ECCV 2022): twin grids, steps by their gradients.

Outputs of softmax and GELU have two grids each. All ranges are shares of the
extremes, but for the low end of a GELU, which stays: the one whose error in
the layer's output is least, squared and weighed by gradients of the detector's
outputs. They are damped here, since those of a few images are large in few
places. Products have a range for each head. The paper's grids are symmetric,
with one for the whole weight of a linear layer. At 4 bits that costs more than
its search brings, so here they are affine, with one for each channel of a
weight.
"""

_base_ = './_base_/tensor_rules.py'
rules = [
    *_base_.rules[:2],
    dict(match='@matmul', act=dict(granularity='channel')),
    dict(
        match='@softmax',
        act=dict(
            type='TwinUniformQuantizer', granularity='tensor', fixed_scale=1.0
        ),
    ),
    dict(match='@gelu', act=dict(type='TwinUniformQuantizer', form='gelu')),
    *_base_.rules[-2:],
]
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe', observer=dict(type='MinMaxObserver')),
    dict(type='SetRanges', weight_observer=dict(type='MinMaxObserver')),
    dict(
        type='SearchScales',
        objective='hessian',
        candidates='ranges',
        count=100,
        rounds=3,
    ),
]
