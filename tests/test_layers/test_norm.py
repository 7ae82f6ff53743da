# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Norms with a quantized input."""

import copy

import torch
from torch import nn

from mmdet_ptq.layers import InputLayerNorm, convert, float_mode, is_leaf
from mmdet_ptq.layers.twins import QuantLayerNorm
from mmdet_ptq.quantizers import PowerOfTwoQuantizer
from mmdet_ptq.quantizers.export_ops import export_mode


def norm_and_input():
    torch.manual_seed(0)
    norm = nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    # channels of three magnitudes
    x = torch.randn(2, 50, 6) * torch.tensor([1.0, 1, 4, 4, 16, 16])
    return norm, x


def twin(norm, x, bits=4):
    norm = copy.deepcopy(norm)
    norm.__class__ = InputLayerNorm
    model = nn.ModuleDict(dict(norm=norm))
    convert(model)
    quantizer = PowerOfTwoQuantizer(bits, axis=-1)
    rows = quantizer.granularity.rows(x)
    quantizer.set_range(rows.amin(1), rows.amax(1))
    model['norm'].attach(acts=dict(input=quantizer))
    return model, model['norm']


def test_no_norm_has_a_twin_by_default():
    model = nn.ModuleDict(dict(norm=nn.LayerNorm(6)))
    assert not is_leaf(model['norm'])
    convert(model)
    assert type(model['norm']) is nn.LayerNorm


def test_against_float64():
    norm, x = norm_and_input()
    _, layer = twin(norm, x)
    assert type(layer) is QuantLayerNorm
    # the largest scale covers all channels, least exponents each its own
    low, high = float(x.min()), float(x.max())
    step = (high - low) / 15
    zero = round(-low / step)
    exact = x.double()
    for c in range(6):
        ends = float(x[..., c].min()), float(x[..., c].max())
        for a in range(4):
            s = step / 8 * 2**a
            if a == 3 or (
                ends[1] <= (15.5 - zero) * s and -ends[0] <= (zero + 0.5) * s
            ):
                codes = (exact[..., c] / s).round() + zero
                exact[..., c] = (codes.clamp(0, 15) - zero) * s
                break
    assert len(layer.act_quantizers['input'].exponents.unique()) > 1
    mean = exact.mean(-1, keepdim=True)
    var = ((exact - mean) ** 2).mean(-1, keepdim=True)
    expected = (exact - mean) / (var + norm.eps).sqrt()
    expected = expected * norm.weight.double() + norm.bias.double()
    torch.testing.assert_close(layer(x), expected.float())


def test_the_float_norm_stays():
    norm, x = norm_and_input()
    model, layer = twin(norm, x)
    assert not torch.equal(layer(x), norm(x))
    with float_mode(model):
        assert torch.equal(layer(x), norm(x))


def test_its_graph_holds_the_codes():
    norm, x = norm_and_input()
    _, layer = twin(norm, x)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = layer

        def forward(self, x):
            return self.norm(x)

    with torch.no_grad(), export_mode():
        program = torch.export.export(Whole(), (x,))
    found = [str(node.target) for node in program.graph.nodes]
    assert found.count('mmdet_ptq.quantize_dequantize.default') == 1
    assert torch.equal(program.module()(x), layer(x))
