# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A layer with any quantizer of weights."""

from torch import nn

from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import (
    FitsTensor,
    LLAQuantizer,
    SubsetQuantizer,
    UniformQuantizer,
)


def layer_with(quantizer, weight):
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
    model[0].weight.data = weight
    convert(model)
    layer = model[0]
    layer.attach(quantizer)
    if isinstance(quantizer, FitsTensor):
        quantizer.fit(weight)
    else:
        rows = quantizer.granularity.rows(weight)
        quantizer.set_range(rows.amin(1), rows.amax(1))
    return layer


QUANTIZERS = {
    'uniform': lambda: UniformQuantizer(
        3, granularity='channel', role='weight'
    ),
    'symmetric': lambda: UniformQuantizer(4, symmetric=True, role='weight'),
    'llaq': lambda: LLAQuantizer(3, role='weight'),
    'llaq-zero': lambda: LLAQuantizer(4, role='weight'),
    'subset': lambda: SubsetQuantizer(3, role='weight'),
}
