# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The search of codebooks, against exhaustive ones."""

import math

import pytest
import torch
from llaq_kit import error, fitted, laplace, laplace_error, made
from seeded import drawn

from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.quantizers.llaq.codebook import Grid, half, rounded_k
from mmdet_ptq.quantizers.llaq.fit import fit_rows, side_errors, side_means

# Laplace of E|u| = 1, E u^2 = 2: without and with a zero code, and what the
# specification measured for the better of the two
TABLE = {
    2: (0.3524, 0.528, 0.353),
    3: (0.1270, 0.139, 0.127),
    4: (0.0413, 0.0392, 0.040),
    5: (0.01297, 0.01157, None),
    6: (0.003999, 0.003484, None),
    7: (0.001214, 0.001052, None),
    8: (3.632e-4, 3.308e-4, 3.2e-4),
}


@pytest.mark.parametrize('bits', TABLE)
def test_error_on_laplace(bits):
    x = laplace()
    *optimum, listed = TABLE[bits]
    for zero, want in zip((False, True), optimum, strict=True):
        got = laplace_error(fitted(x, bits, zero=zero))
        assert want * 0.998 < got < want * 1.03
    ours = laplace_error(fitted(x, bits))
    assert ours == min(
        laplace_error(fitted(x, bits, zero=z)) for z in (False, True)
    )
    if listed:
        assert ours == pytest.approx(listed, rel=0.04)
    log = laplace_error(fitted(x, bits, rounding='log'))
    assert ours < log < 1.3 * ours
    # the best of uniform: with a level at zero, and without
    best = math.inf
    for c in torch.linspace(0.5, 14, 60).tolist():
        q = UniformQuantizer(bits, True)
        q.set_range(torch.tensor([-c]), torch.tensor([c]))
        step = 2 * c / 2**bits

        def rise(x, c=c, step=step):
            y = ((x / step).floor() + 0.5) * step
            return y.clamp(step / 2 - c, c - step / 2)

        best = min(best, laplace_error(q), laplace_error(rise))
    assert ours < 0.91 * best


@pytest.mark.parametrize('bits', TABLE)
@pytest.mark.parametrize('zero', [False, True])
def test_start_is_the_best_for_laplace(bits, zero):
    grid = Grid(bits, zero)
    k, low = grid.start()
    middle = (grid.top + grid.first) / 2

    def at(factor, offset):
        """The error after moving a, or scaling k about the middle level."""
        a = middle - factor * (k * math.log2(low) + middle - grid.first)
        return laplace_error(
            made(factor * k, [a + offset] * 2, bits=bits, zero=zero)
        )

    best = at(1, 0)
    assert best == pytest.approx(TABLE[bits][zero], rel=3e-3)
    for move in ((1, 0.15), (1, -0.15), (0.95, 0), (min(1.05, 16 / k), 0)):
        assert best < at(*move) * 1.0005


#: k, lowest and highest level of the specification, for lambda = 1
START = {
    (2, False): (0.463, 0.591, 2.64),
    (3, False): (0.90, 0.425, 4.3),
    (4, False): (1.59, 0.28, 6.0),
    (4, True): (1.65, 0.50, 6.2),
}


@pytest.mark.parametrize(('bits', 'zero'), START)
def test_start_is_that_of_the_specification(bits, zero):
    grid = Grid(bits, zero)
    k, low = grid.start()
    high = low * 2 ** ((grid.top - grid.first) / k)
    assert (k, low, high) == pytest.approx(START[bits, zero], rel=0.025)
    assert 15.8 < Grid(8, False).start()[0] <= 16
    # the scale of a side enters as a = -k log2(c_min lambda)
    rows = laplace(1 << 10)
    for factor in (1.0, 0.01):
        k, a = fit_rows(grid, factor * rows, False)
        lowest = 2 ** ((grid.first - a) / k) / factor
        # within the search around the start
        assert (0.7 * low < lowest).all() and (lowest < 1.4 * low).all()


@pytest.mark.parametrize('zero', [False, True])
@pytest.mark.parametrize('log', [False, True])
def test_side_errors_are_exact(zero, log):
    torch.manual_seed(0)
    rows = torch.randn(2, 300)
    rows[0, :10] = 0
    grid = Grid(3, zero, log)
    k, a = torch.rand(4) + 0.5, torch.randn(2, 2, 4)
    found = side_errors(grid, rows, k, a)
    for r in range(2):
        for side in (0, 1):
            mine = rows[r] >= 0 if side else rows[r] < 0
            u = rows[r][mine].abs()
            for c in range(4):
                levels = grid.magnitudes(k[c], a[r, side, c])
                cuts = grid.splits(k[c], a[r, side, c])
                y = levels[torch.bucketize(u, cuts, right=True)]
                want = (y - u).double().square().sum().item()
                assert found[r, side, c].item() == pytest.approx(want)


def test_side_means():
    rows = torch.tensor([[0.0, 0.0, 1.0, 3.0, -5.0], [0.0, 4.0, 0, 0, 0]])
    # pruned weights do not count; an empty side is tiny
    assert side_means(rows).tolist() == [[5, 2], [4e-8, 4]]
    assert side_means(rows[:, :2]).tolist()[0] == [1e-8, 1e-8]
    assert side_means(rows[:, :0]).tolist()[0] == [1e-8, 1e-8]


def test_search_takes_the_best(monkeypatch):
    torch.manual_seed(0)
    rows = drawn(lambda: torch.randn(5, 90) * torch.rand(5, 1))
    for bits in (2, 4):
        grid = Grid(bits, bits == 4)
        k, a = fit_rows(grid, rows, False)
        # in pieces it is the same
        monkeypatch.setattr('mmdet_ptq.quantizers.llaq.fit.CHUNK', 1)
        again = fit_rows(grid, rows, False)
        monkeypatch.undo()
        assert torch.equal(again[0], k) and torch.equal(again[1], a)
        for row in range(5):
            for s in (0, 1):
                one = rows[row : row + 1]
                best, at = math.inf, None
                start, low = grid.start()
                scale = one[one > 0].mean() if s else -one[one < 0].mean()
                for f in (0.8, 0.9, 1.0, 1.12, 1.25):
                    for offset in (-0.5, -0.25, 0.0, 0.25, 0.5):
                        kk = rounded_k(torch.tensor([f * start]))
                        aa = grid.first - kk * (scale * low).log2() + offset
                        found = side_errors(grid, one, kk, aa.expand(1, 2, 1))
                        if found[0, s, 0] < best:
                            best, at = found[0, s, 0], (kk.item(), aa.item())
                assert k[row, s].item() == pytest.approx(at[0])
                assert a[row, s].item() == pytest.approx(at[1], abs=0.01)


def test_one_k_for_a_layer():
    torch.manual_seed(0)
    w = drawn(lambda: torch.randn(6, 50) ** 3)
    one, many = fitted(w, k_granularity='layer'), fitted(w)
    assert one.log_k.shape == (1, 1) and many.log_k.shape == (6, 2)
    assert one.a.shape == many.a.shape == (6, 2)
    assert error(many, w) < error(one, w) < 1.3 * error(many, w)
    # the best of the five for the sum over all rows and sides
    errors = {}
    start, low = one.grid.start()
    for factor in (0.8, 0.9, 1.0, 1.12, 1.25):
        k = rounded_k(torch.tensor([factor * start]))
        a = one.grid.first - k * (side_means(w) * low).log2()[..., None]
        a = a + torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5])
        found = side_errors(one.grid, w, k, half(a, 2.0**-10))
        errors[k.log2().item()] = found.amin(-1).sum().item()
    assert min(errors, key=errors.get) == pytest.approx(one.log_k.item())


def test_degenerate_channels():
    torch.manual_seed(0)
    w = drawn(lambda: torch.distributions.Laplace(0.0, 0.02).sample((4, 2000)))
    w[1] = 0
    w[2] = w[2].abs()
    w[3] = -w[3].abs()
    for bits in (2, 3, 4, 8):
        q = fitted(w, bits)
        y = q(w)
        assert y[1].abs().max() < 1e-7
        rows = (y - w).square().mean(1) / w.square().mean(1).clamp(min=1e-9)
        # the free side serves the weights next to zero
        most = rows[0] * (0.95 if bits < 4 else 1.2)
        assert rows[2] < most and rows[3] < most
        assert (y[2] > -1e-6).all() and (y[3] < 1e-6).all()


def test_median():
    torch.manual_seed(0)
    w = drawn(lambda: torch.distributions.Laplace(0.0, 0.1).sample((3, 4001)))
    w += torch.tensor([1.0, 0.0, -0.05])[:, None]
    q = fitted(w, 3, mu='median')
    middle = w.median(1).values
    assert q.mu.tolist() == [half(middle)[0].item(), 0, half(middle)[2].item()]
    assert q.mu[0] != middle[0]  # float16
    better = (q(w) - w).square().mean(1)
    worse = (fitted(w, 3)(w) - w).square().mean(1)
    assert better[0] < worse[0] / 3 and better[2] < worse[2]
    assert better[1] == worse[1]
