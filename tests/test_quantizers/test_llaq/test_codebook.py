# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Values and codes, against the formulas of Reg-PTQ."""

import math

import pytest
import torch
from llaq_kit import ALL_BITS, fitted, made

from mmdet_ptq.quantizers import LLAQuantizer


def test_by_hand():
    q = made(1.0, [0.0, 0.0], zero=False)  # levels 1, 2 on each side
    assert q.codebook().tolist() == [[-2, -1, 1, 2]]
    x = [[-9.0, -1.51, -1.49, -0.1, 0.0, 0.1, 1.49, 1.5, 9.0]]
    assert q.encode(torch.tensor(x)).tolist() == [[0, 0, 1, 1, 2, 2, 2, 3, 3]]
    q = made(1.0, [0.0, 0.0], zero=False, rounding='log')  # bounds sqrt(2)
    x = [[-1.42, -1.41, -1e-9, 0.0, 1.41, 1.42]]
    assert q.encode(torch.tensor(x)).tolist() == [[0, 1, 1, 2, 2, 3]]
    # k = 1/2: 4^(q - a); the sides differ, so the middle is not at zero
    q = made(0.5, [-0.5, 1.0], zero=False)
    assert q.codebook().tolist() == [[-8, -2, 0.25, 1]]
    x = [[-5.1, -4.9, -0.9, -0.8, 0.6, 0.7]]
    assert q.encode(torch.tensor(x)).tolist() == [[0, 1, 1, 2, 2, 3]]


def test_zero_code_by_hand():
    q = made(1.0, [0.0, 1.0], mu=[3.0], bits=3, zero=True)
    assert q.codebook().tolist() == [[-5, -1, 1, 3, 4, 5, 7]]
    x = torch.tensor([[1.9, 2.1, 3.0, 3.4, 3.6, 99.0]])
    assert q.encode(x).tolist() == [[2, 3, 3, 3, 4, 6]]
    assert q(x).tolist() == [[1, 3, 3, 3, 4, 7]]
    # printed rounding: psi = 0.5, that is u = sqrt(1/2) above
    q = made(1.0, [0.0, 1.0], mu=[3.0], bits=3, zero=True, rounding='log')
    x = torch.tensor([[1.58, 1.59, 3.70, 3.71]])
    assert q.encode(x).tolist() == [[2, 3, 3, 4]]


def test_zero_code_is_from_4_bits():
    for bits in ALL_BITS:
        assert LLAQuantizer(bits).grid.zero == (bits >= 4)
    q = fitted(torch.tensor([[0.0, 1.0, -1.0, 0.5]]))
    y = q(torch.tensor([[0.0, -0.0]]))
    assert y.tolist() == [[0.0, 0.0]] and not torch.signbit(y).any()


def naive_values(q, row):
    """(value, side, q) of all codes, by the printed formulas in double."""
    n, found = 2 ** (q.bits - 1), []
    for side, sign in ((0, -1), (1, 1)):
        k = 2 ** q.log_k.expand(q.a.shape)[row, side].item()
        a, mu = q.a[row, side].item(), q.mu[row].item()
        for code in range(n):
            u = 2 ** ((code - a) / k)
            if q.grid.zero and code == 0:
                if side == 0:
                    continue
                u = 0.0
            found.append(mu + sign * u)
    return sorted(found)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('zero', [False, True])
def test_encode_finds_the_nearest_level(bits, zero):
    torch.manual_seed(bits)
    k = 0.3 + 2 * torch.rand(3, 2)
    mu = [0.0, 0.3, -0.1]
    q = made(k, torch.randn(3, 2), mu, bits, zero=zero)
    x = torch.randn(3, 80) * 3
    codes, y = q.encode(x), q(x)
    for row in range(3):
        values = naive_values(q, row)
        assert len(values) == 2**bits - zero
        for i, w in enumerate(x[row].tolist()):
            away = sorted((abs(w - v), c) for c, v in enumerate(values))
            code = codes[row, i].item()
            expected = pytest.approx(values[code], rel=1e-5, abs=1e-6)
            assert y[row, i].item() == expected
            if away[1][0] - away[0][0] > 1e-5:
                assert code == away[0][1]


@pytest.mark.parametrize('zero', [False, True])
def test_log_rounding_is_that_of_psi(zero):
    torch.manual_seed(0)
    q = made([0.7, 1.9], [0.4, -0.3], [0.2], 4, zero=zero, rounding='log')
    x = torch.randn(1, 400) * 3
    checked = 0
    for w, code in zip(x[0].tolist(), q.encode(x)[0].tolist(), strict=True):
        side = int(w >= q.mu.item())
        k = [0.7, 1.9][side]
        psi = k * math.log2(abs(w - q.mu.item())) + [0.4, -0.3][side]
        if abs(psi % 1 - 0.5) < 1e-4:
            continue
        want = min(max(math.floor(psi + 0.5), 0), 7)
        want = 7 + (not zero) + want if side else 7 - want
        checked += 1
        assert code == want
    assert checked > 390


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('zero', [False, True])
def test_lower_codes(bits, zero):
    torch.manual_seed(0)
    w = torch.randn(3, 500)
    q = fitted(w, bits, zero=zero)
    table = q.codebook()
    x = torch.cat([w, table, torch.tensor([[-1e9, 1e9, 0.0]] * 3)], 1)
    lower = q.lower_codes(x)
    assert lower.dtype == torch.int32
    assert lower.min() == 0 and lower.max() == table.shape[1] - 2
    low, high = q.values(lower), q.values(lower + 1)
    inside = (x >= table[:, :1]) & (x <= table[:, -1:])
    assert ((low <= x) & (x <= high))[inside].all() and inside.sum() > 1000
    assert (lower[x < table[:, :1]] == 0).all()
    # halfway between the two is where hard rounding turns
    h = (x - low) / (high - low)
    hard = lower + (h >= 0.5)
    sure = (h - 0.5).abs() > 1e-4
    assert torch.equal(q.encode(x)[sure], hard[sure].int())
    middle = q.lower_codes(torch.zeros(3, 1))
    assert middle.unique().tolist() == [2 ** (bits - 1) - 1]


def test_literal_is_the_printed_formula():
    torch.manual_seed(0)
    w = torch.randn(1, 200)
    for k in ((1.0, 1.0), (1.6, 0.75)):
        a = (1.3, 0.7)
        moment, total = [0.0, 0.0], 0.0
        for v in w[0].tolist():
            side = int(v >= 0)
            moment[side] += abs(v) ** (1 - k[side]) / 200
            total += abs(v) / (abs(v) ** k[side] * 2 ** a[side]) / 200
        q = made(
            k, a, bits=3, moment=moment, form='paper_literal', rounding='log'
        )
        y, codes = q(w), q.encode(w)
        assert torch.equal(q.decode(codes), y)
        for v, got in zip(w[0].tolist(), y[0].tolist(), strict=True):
            side = int(v >= 0)
            psi = k[side] * math.log2(abs(v)) + a[side]
            code = min(max(round(psi), 0), 3)
            want = math.copysign(total * 2**code, v)
            assert got == pytest.approx(want, rel=1e-5)
        # neither idempotent nor nearest: what the form does not promise
        if k != (1.0, 1.0):
            assert not torch.equal(q(y), y)
            table = q.codebook()
            near = (w[..., None] - table).abs().min(-1).values
            assert ((y - w).abs() > near + 1e-3).any()
