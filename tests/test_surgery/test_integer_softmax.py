# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products that take a softmax of whole logits."""

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import MatMul, convert, integer_softmax
from mmdet_ptq.quantizers import LogQuantizer
from mmdet_ptq.surgery import WholeSoftmax, edits_of


def product(steps, sums):
    model = nn.ModuleDict(dict(product=MatMul()))
    edit = WholeSoftmax('product', steps, sums)
    edits_of([edit.to_dict()])[0].rebuild(model)
    convert(model)
    quantizer = LogQuantizer(4, rounding='whole', fixed_scale=1.0)
    quantizer.set_range(torch.zeros(1), torch.ones(1))
    model['product'].attach(acts=dict(a=quantizer))
    return model['product'], quantizer


@pytest.mark.parametrize('sums', [False, True])
def test_the_softmax_is_whole_where_it_is_quantized(sums):
    torch.manual_seed(0)
    p, v = (2 * torch.randn(2, 3, 5, 9)).softmax(-1), torch.randn(2, 3, 9, 4)
    layer, quantizer = product(2, sums)
    powers = quantizer(integer_softmax(p, 2))
    expected = powers.double() @ v.double()
    if sums:
        expected /= powers.double().sum(-1, keepdim=True)
    torch.testing.assert_close(layer(p, v), expected.float())
    plain = quantizer(p) @ v
    assert not torch.allclose(layer(p, v), plain, rtol=1e-3)
    layer.switch(weight=False, act=False)
    assert torch.equal(layer(p, v), p @ v)
    layer.switch(weight=True, act=True)
    layer.set_quantizer('a', None)
    assert torch.equal(layer(p, v), p @ v)


def test_what_it_refuses():
    model = nn.ModuleDict(dict(linear=nn.Linear(2, 2), product=MatMul()))
    with pytest.raises(PTQError, match='is a Linear, and only a product'):
        WholeSoftmax('linear', 8).apply(model)
    with pytest.raises(ValueError, match='steps'):
        WholeSoftmax('product', 0).apply(model)
