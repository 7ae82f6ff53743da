# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Softmax in whole numbers, against FQ-ViT's steps in Python's own."""

import math

import pytest
import torch

from mmdet_ptq.layers import integer_softmax
from mmdet_ptq.quantizers import LogQuantizer


def exponentials(codes, step):
    """Whole numbers for ``exp(codes step)``, as FQ-ViT's code has it."""
    a, b, c = 0.35815147, 0.96963238 / 0.35815147, 1 / 0.35815147
    octave = -round(math.log(2) / step)
    found = []
    for x in codes:
        x = max(x, 30 * octave)
        q = x // octave
        r = x - octave * q
        whole = r * (r + math.floor(b / step)) + math.floor(c / step**2)
        found.append(whole << 30 - q)
    assert a > 0
    return found


def log_codes(found, bits):
    """Powers of two of whole ratios, by Lin et al., equation 16."""
    out = []
    for one in found:
        ratio = round(sum(found) / one)
        k = ratio.bit_length() - 1
        k += ratio - (1 << k) >= (1 << k) / 2
        out.append(2.0**-k if k < 2**bits - 1 else 0.0)
    return out


@pytest.mark.parametrize('steps', [1, 3, 8, 40])
@pytest.mark.parametrize('bits', [3, 4])
def test_against_whole_numbers(steps, bits):
    step = math.log(2) / steps
    rng = torch.Generator().manual_seed(steps)
    codes = torch.randint(-8 * steps, 1, (20, 12), generator=rng)
    codes[:, 3] = 0  # the largest of each row
    p = (codes.double() * step).softmax(-1)
    found = integer_softmax(p, steps)
    whole = [exponentials(row, step) for row in codes.tolist()]
    expected = [[e / sum(row) for e in row] for row in whole]
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    quantizer = LogQuantizer(bits, rounding='whole', fixed_scale=1.0)
    quantizer.set_range(torch.zeros(1), torch.ones(1))
    powers = torch.tensor([log_codes(row, bits) for row in whole])
    assert torch.equal(quantizer(found.float()), powers)


def test_it_is_near_a_softmax():
    torch.manual_seed(0)
    p = (3 * torch.randn(50, 30)).softmax(-1)
    found = integer_softmax(p, 64)
    assert float(((found - p).abs() / p)[p > 1e-4].max()) < 0.02
    torch.testing.assert_close(found.sum(-1), torch.ones(50))
    # rounding to half a step, and the polynomial
    rough = integer_softmax(p, 8)
    assert float(((rough - p).abs() / p)[p > 1e-4].max()) < 0.15


def test_what_is_masked_stays_zero():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    assert torch.equal(integer_softmax(p, 8), p)
    assert integer_softmax(torch.empty(0, 3), 8).shape == (0, 3)


def test_gradients_pass():
    p = torch.randn(4, 5).softmax(-1).requires_grad_()
    integer_softmax(p, 8).mul(torch.arange(5)).sum().backward()
    assert torch.equal(p.grad, torch.arange(5.0).expand(4, 5))
