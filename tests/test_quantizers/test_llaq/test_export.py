# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables and the shift form."""

import pytest
import torch
from llaq_kit import error, fitted, laplace, laplace_error

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import LLAQuantizer, lut, shift_form


def test_lut():
    torch.manual_seed(0)
    w = torch.randn(3, 4, 5)
    for bits in (2, 4):
        q = fitted(w, bits, mu='median')
        q.learn_table()
        table = lut(q)
        assert table.shape == (3, 2**bits - (bits == 4))
        assert not table.requires_grad
        found = table.gather(1, q.encode(w).long().flatten(1))
        assert torch.equal(found.view_as(w), q(w))
    with pytest.raises(CalibrationError, match='fit'):
        lut(LLAQuantizer(4))


def test_shift_form_on_laplace():
    x = laplace(1 << 14)
    # k = 1/2 at 2 bits, 1 above: [M] of the specification
    for bits, m, want in ((2, 2, 0.353), (3, 1, 0.132), (4, 1, 0.0765)):
        form = shift_form(fitted(x, bits, zero=False), x)
        n = 2 ** (bits - 1)
        up = [m * q for q in range(n)]
        assert form.shift.tolist() == [up[::-1] + up]
        assert form.side.tolist() == [-1] * n + [1] * n
        assert laplace_error(form.quantizer) == pytest.approx(want, rel=0.02)
        # the least squares scale: no other is better
        best = error(form.quantizer, x)
        for step in (-0.02, 0.02):
            form.quantizer.a += step
            assert error(form.quantizer, x) > best
            form.quantizer.a -= step


@pytest.mark.parametrize('bits', [2, 3, 4, 5])
@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('shared', ['side', 'layer'])
def test_shift_form_is_exact(bits, zero, shared):
    torch.manual_seed(0)
    w = torch.distributions.Laplace(0.0, 0.02).sample((40, 3, 3, 11))
    w[1], w[2] = w[1].abs(), 0
    w[3] += 0.05
    q = fitted(w, bits, zero=zero, mu='median', k_granularity=shared)
    q.learn_table()
    before = q(w).detach()
    form = shift_form(q, w)
    assert torch.equal(q(w), before) and list(q.parameters())
    new = form.quantizer
    assert torch.equal(form.values(), lut(new))
    ms = set((1 / 2**new.log_k).flatten().tolist())
    assert ms <= {1.0, 2.0}
    assert form.shift.min() == 0 and form.shift.max() < 2**bits
    # by integers alone
    codes = new.encode(w).flatten(1)
    for row in (0, 1, 2, 3, 39):
        for i in range(0, 99, 9):
            code = codes[row, i].item()
            side = form.side[code].item()
            scale = form.scale[row, int(side > 0)]
            shifted = scale * (1 << form.shift[row, code].item())
            got = form.mu[row] + side * shifted
            assert got == new(w).flatten(1)[row, i]
    noise = {2: 0.2, 3: 0.07, 4: 0.04, 5: 0.04}[bits] * (1 + zero)
    assert error(new, w) < noise * w.square().mean()
    for kwargs in (dict(form='paper_literal'), dict(bits=6)):
        with pytest.raises(ValueError, match='at most 5 bits'):
            shift_form(fitted(w, **kwargs), w)
