# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Gradients of inputs and of the codebook."""

import math

import pytest
import torch
from llaq_kit import fitted, made
from seeded import drawn


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('shared', ['side', 'layer'])
def test_codebook_gradient(bits, zero, shared):
    torch.manual_seed(0)
    w = drawn(lambda: torch.randn(3, 40))
    q = fitted(w + 0.2, bits, zero=zero, k_granularity=shared, mu='median')
    # away from the bound, which has no differences beyond it
    q.log_k.clamp_(max=3.5)
    before, codes = q(w), q.encode(w)
    q.learn_table()
    assert sorted(n for n, _ in q.named_parameters()) == ['a', 'log_k']
    g = torch.randn(3, 40)
    y = q(w)
    assert torch.equal(y, before) and torch.equal(q.values(codes), before)
    (y * g).sum().backward()
    grads = {n: p.grad.clone() for n, p in q.named_parameters()}
    q.zero_grad()
    z = w.clone().requires_grad_()
    (q(z) * g).sum().backward()  # and to the input at once
    assert z.grad.count_nonzero() > 30
    for name, p in q.named_parameters():
        assert torch.equal(p.grad, grads[name])
    q.zero_grad()
    (q.values(codes) * g).sum().backward()
    for name, p in q.named_parameters():
        assert torch.equal(p.grad, grads[name])
        for i in range(p.numel()):
            ends = []
            for step in (0.01, -0.02):
                p.data.view(-1)[i] += step
                with torch.no_grad():
                    ends.append((q.values(codes) * g).double().sum().item())
            p.data.view(-1)[i] += 0.01
            want = (ends[0] - ends[1]) / 0.02
            got = grads[name].view(-1)[i].item()
            assert got == pytest.approx(want, rel=5e-3, abs=5e-3)


def test_codebook_gradient_by_formula():
    q = made([0.8, 1.5], [0.5, -0.25], bits=3, zero=False)
    q.learn_table()
    for code in range(8):
        q.zero_grad()
        value = q.values(torch.tensor([[code]]))
        value.sum().backward()
        side, i = int(code >= 4), code - 4 if code >= 4 else 3 - code
        k, a = [(0.8, 0.5), (1.5, -0.25)][side]
        da, dk = q.a.grad, q.log_k.grad / (k * math.log(2))
        w = value.item()
        assert da[0, side].item() == pytest.approx(-math.log(2) / k * w)
        assert dk[0, side].item() == pytest.approx(
            -math.log(2) * (i - a) / k**2 * w, rel=1e-4, abs=1e-6
        )
        assert da[0, 1 - side] == 0 and dk[0, 1 - side] == 0


@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('rounding', ['linear', 'log'])
def test_input_gradient(zero, rounding):
    torch.manual_seed(0)
    ks, a = (0.6, 1.3), (0.4, 0.1)
    q = made(ks, a, [0.25], 3, zero=zero, rounding=rounding)
    x = (torch.randn(1, 500) * 20).requires_grad_()
    x.data[:, ::2] /= 10
    g = torch.randn(1, 500)
    y = q(x)
    (y * g).sum().backward()
    seen = set()
    for i in range(500):
        d = x[0, i].item() - 0.25
        k, r = ks[int(d >= 0)], 2 ** (1 / ks[int(d >= 0)])
        shift = 0.5 if rounding == 'log' else 1 - k * math.log2((1 + r) / 2)
        code = math.floor(k * math.log2(abs(d)) + a[int(d >= 0)] + shift)
        slope = 0.0
        if int(zero) <= code <= 3:
            slope = abs(y[0, i].item() - 0.25) / abs(d)
            low, high = r**-0.5, r**0.5
            if rounding == 'linear':
                low, high = 2 / (1 + r), 2 * r / (1 + r)
            assert low * (1 - 1e-5) <= slope <= high * (1 + 1e-5)
        seen.add((d >= 0, code < zero, code > 3))
        assert x.grad[0, i].item() == pytest.approx(
            g[0, i].item() * slope, rel=1e-5, abs=1e-6
        )
    assert len(seen) == 6
    z = x.detach().half().requires_grad_()
    q(z).sum().backward()
    assert z.grad.dtype == torch.float16
