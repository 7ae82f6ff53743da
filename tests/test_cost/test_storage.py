# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Sizes that the result file reports, counted by hand."""

import torch
from torch import nn

from mmdet_ptq.artefact import storage_mb
from mmdet_ptq.layers import convert
from mmdet_ptq.quantizers import UniformQuantizer


def test_every_bit_is_counted_once():
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(10, 6), nn.Linear(6, 2))
    convert(model)
    weight = UniformQuantizer(3, granularity='channel', role='weight')
    weight.set_range(-torch.ones(6), torch.ones(6))
    model[0].weight_quantizer = weight
    # one quantizer for two layers, one symmetric
    shared, own = UniformQuantizer(4), UniformQuantizer(8, symmetric=True)
    for quantizer in (shared, own):
        quantizer.set_range(-torch.ones(1), torch.ones(1))
    model[0].act_quantizers['input'] = shared
    model[1].act_quantizers['input'] = shared
    model[2].act_quantizers['input'] = own
    full, packed = storage_mb(model)
    count = 66 + 66 + 14
    assert full == count * 32 / 8e6
    weights = 60 * 3 + 6 * (32 + 3)
    assert packed == ((count - 60) * 32 + weights + 32 + 4 + 32) / 8e6
    # a learned step is no parameter of the detector
    own.learn_step()
    assert storage_mb(model) == (full, packed)
