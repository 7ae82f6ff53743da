# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers with quantizers to be searched, and samples of their inputs."""

import torch
from compensate_kit import data, twin
from torch import nn

from mmdet_ptq.calibration import sample_rows
from mmdet_ptq.layers import convert
from mmdet_ptq.layers.matmul import MatMul
from mmdet_ptq.passes.search_scales.operands import Sampled
from mmdet_ptq.quantizers import UniformQuantizer


def every_row(layer, x):
    rows = sample_rows(layer, x, 10**6, torch.Generator().manual_seed(0))
    image = torch.zeros(rows.shape[1], dtype=torch.int64)
    return Sampled(0, image, (rows,))


def quantized(kind, act='tensor'):
    layer = twin(kind)
    x = data(layer, images=1)[0][0]
    q = UniformQuantizer(3, granularity=act, axis=layer.act_axis)
    rows = q.granularity.rows(x)
    q.set_range(rows.amin(1), rows.amax(1))
    layer.set_quantizer('input', q)
    return layer, x


def product(kind='channel', m=7):
    torch.manual_seed(0)
    model = nn.Sequential(MatMul())
    convert(model)
    layer = model[0]
    a, b = torch.randn(3, 2, 5, 4), torch.randn(3, 2, 4, m)
    for port, x in (('a', a), ('b', b)):
        q = UniformQuantizer(3, granularity=kind, axis=1)
        rows = q.granularity.rows(x)
        q.set_range(rows.amin(1), rows.amax(1))
        layer.set_quantizer(port, q)
    return layer, a, b


def error_of(layer, *inputs):
    """Squared error of the very layer."""
    ours = layer(*inputs)
    layer.switch(False, False)
    exact = layer(*inputs)
    layer.switch(True, True)
    return float((ours - exact).double().square().sum())
