# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products that take the numerator of a softmax."""

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.surgery import SoftmaxNumerator


def product(divide=None, bits=4):
    """A product as a twin, its first operand on one grid from 0 to 1."""
    model = nn.ModuleDict(dict(product=MatMul()))
    if divide:
        SoftmaxNumerator('product', divide).apply(model)
    convert(model)
    quantizer = UniformQuantizer(bits)
    quantizer.set_range(torch.zeros(1), torch.ones(1))
    model['product'].attach(acts=dict(a=quantizer))
    return model['product']


def operands():
    rng = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 3, 5, 40, generator=rng)
    logits[0, 0, 0, 30:] = float('-inf')
    return logits, torch.randn(2, 3, 40, 8, generator=rng)


def by_hand(logits, v, bits, divide):
    """Softmax times V in float64, row by row."""
    levels = 2**bits - 1
    found = torch.empty(*logits.shape[:-1], v.shape[-1], dtype=torch.float64)
    for i in range(2):
        for h in range(3):
            for n in range(5):
                row = logits[i, h, n].double()
                e = (row - row.max()).exp()
                q = torch.round(e * levels) / levels
                total = q.sum() if divide == 'quantized' else e.sum()
                found[i, h, n] = q @ v[i, h].double() / total
    return found


@pytest.mark.parametrize('divide', ['float', 'quantized'])
def test_it_is_the_numerator_that_is_quantized(divide):
    logits, v = operands()
    found = product(divide)(logits.softmax(-1), v)
    expected = by_hand(logits, v, 4, divide).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
@pytest.mark.parametrize('divide', ['float', 'quantized'])
def test_rows_of_zeros_stay(divide, dtype):
    """In half precision too, where 1e-12 is 0."""
    rows = torch.zeros(1, 1, 2, 4, dtype=dtype)
    rows[..., 1, :] = 0.25
    found = product(divide)(rows, torch.ones(1, 1, 4, 3, dtype=dtype))
    assert found[0, 0].tolist() == [[0.0] * 3, [1.0] * 3]


def test_rows_of_small_attention_gain():
    """Many keys that are nearly alike: the largest weight is small."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 400, generator=rng)
    weights, v = logits.softmax(-1), torch.randn(2, 3, 400, 8, generator=rng)
    exact = weights @ v
    plain, ours = (
        float((product(d)(weights, v) - exact).norm() / exact.norm())
        for d in (None, 'quantized')
    )
    # on one grid from 0 to 1 they are all 0
    assert ours < 0.3 and plain > 0.9


@pytest.mark.parametrize('divide', ['float', 'quantized'])
def test_the_float_product_stays(divide):
    logits, v = operands()
    weights = logits.softmax(-1)
    layer = product(divide)
    layer.switch(weight=False, act=False)
    torch.testing.assert_close(layer(weights, v), weights @ v)
    # a query that sees nothing
    weights[0, 0, 0] = 0
    assert torch.equal(layer(weights, v)[0, 0, 0], torch.zeros(8))


def test_what_it_refuses():
    model = nn.ModuleDict(dict(linear=nn.Linear(2, 2), product=MatMul()))
    with pytest.raises(PTQError, match='is a Linear, and only a product'):
        SoftmaxNumerator('linear').apply(model)
    with pytest.raises(ValueError, match='divide'):
        SoftmaxNumerator('product', 'both').apply(model)
