# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Norms that get an input to quantize."""

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import InputLayerNorm
from mmdet_ptq.surgery import NormInput, edits_of, norm_inputs


class Own(nn.LayerNorm):
    """May compute something else."""


def test_plain_layer_norms_alone():
    model = nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), Own(4))
    x = torch.randn(3, 4)
    expected = model(x)
    edits = norm_inputs(model)
    assert edits == [NormInput('0')]
    kinds = [type(m) for m in model]
    assert kinds == [InputLayerNorm, nn.GroupNorm, Own]
    assert torch.equal(model(x), expected)
    fresh = nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), Own(4))
    for edit in edits_of([e.to_dict() for e in edits]):
        edit.rebuild(fresh)
    assert type(fresh[0]) is InputLayerNorm


def test_what_it_refuses():
    model = nn.Sequential(Own(4))
    with pytest.raises(PTQError, match="'0' is a Own, and only"):
        NormInput('0').apply(model)
