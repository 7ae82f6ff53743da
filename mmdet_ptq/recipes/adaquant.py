# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AdaQuant (Hubara et al., 2021): weights, biases and ranges, by layer.

Layers are visited one after the other, each on the inputs that the
quantized layers before it give. The published default, float inputs of all
layers at once, is `order='parallel', input_distribution='float'` of
`Reconstruct`.
"""

_base_ = './_base_/calibrated.py'
passes = [
    *_base_.passes,
    dict(
        type='Reconstruct',
        unit='layer',
        learn=[dict(type='LearnedWeights')],
        losses=[dict(type='L2Loss')],
        iters=1000,
    ),
]
