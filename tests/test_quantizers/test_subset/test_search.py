# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The search of subsets, against every subset."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from crossings import crossings
from seeded import seeded
from subset_kit import UNIVERSE, fitted, samples

from mmdet_ptq.quantizers.subset import search as subset_search


def nearest(value, levels):
    return min(levels, key=lambda level: (abs(value - level), level))


def slow_fit(values, levels):
    """The alternating fit from alpha 1, one element at a time."""
    alpha, before = 1.0, 0.0
    for _ in range(1000):
        picked = [nearest(v, [alpha * m for m in levels]) for v in values]
        picked = [p / alpha for p in picked]
        error = math.sqrt(
            sum(
                (v - alpha * p) ** 2
                for v, p in zip(values, picked, strict=True)
            )
        )
        power = sum(p * p for p in picked)
        product = sum(v * p for v, p in zip(values, picked, strict=True))
        alpha = product / power if power else sum(values) / len(values)
        if abs(before - error) < 1e-5:
            break
        before = error
    errors = [v - nearest(v, [alpha * m for m in levels]) for v in values]
    return alpha, math.sqrt(sum(e * e for e in errors))


def every_subset(count):
    for subset in combinations(UNIVERSE, count):
        yield [m / subset[-1] for m in subset]


def fast_fits(values, subsets):
    """:func:`slow_fit` of many subsets, by a table of all distances."""
    alpha, before = np.ones(len(subsets)), np.zeros(len(subsets))
    live = np.ones(len(subsets), bool)

    def assign(alpha):
        grid = alpha[:, None, None] * subsets[:, None, :]
        at = np.abs(values[None, :, None] - grid).argmin(2)
        picked = np.take_along_axis(subsets, at, 1)
        gap = values - alpha[:, None] * picked
        return picked, np.sqrt((gap**2).sum(1))

    for _ in range(1000):
        picked, error = assign(alpha)
        power = (picked**2).sum(1)
        better = np.where(
            power > 0,
            (picked * values).sum(1) / np.maximum(power, 1e-30),
            values.mean(),
        )
        alpha = np.where(live, better, alpha)
        live &= np.abs(before - error) >= 1e-5
        before = error
        if not live.any():
            break
    return alpha, assign(alpha)[1]


@pytest.mark.parametrize('bits, total', [(2, 105), (3, 1365), (4, 6435)])
def test_candidates_are_all_subsets(bits, total):
    got = [tuple(s) for s in subset_search.candidate_subsets(bits).tolist()]
    want = [tuple(s) for s in every_subset(2 ** (bits - 1))]
    assert len(want) == total
    assert got == list(dict.fromkeys(want))


@pytest.mark.parametrize('kind', ['normal', 'peaked', 'sparse'])
@pytest.mark.parametrize('bits, size', [(2, 60), (3, 24)])
def test_search_against_every_subset(bits, size, kind):
    w = samples((2, size // 2), kind, bits)
    q = fitted(w, bits, granularity='tensor')
    top = w.abs().max().item()
    values = [abs(v) / top for v in w.flatten().tolist()]
    found = [(*slow_fit(values, s), s) for s in every_subset(2 ** (bits - 1))]
    alpha, least, subset = min(found, key=lambda f: f[1])
    assert q.magnitudes.tolist() == pytest.approx(subset)
    assert q.scale.item() == pytest.approx(alpha * top, rel=1e-6)
    error = torch.linalg.vector_norm(q(w) - w).item() / top
    assert error == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize('kind', ['normal', 'peaked', 'sparse'])
@pytest.mark.parametrize('size', [40, 300])
def test_search_against_every_subset_of_4_bits(kind, size):
    w = samples((size // 4, 4), kind, size)
    q = fitted(w, 4, granularity='tensor')
    top = w.abs().max().double()
    values = (w.abs().double() / top).flatten().cpu().numpy()
    subsets = np.array(list(every_subset(8)))
    parts = [fast_fits(values, s) for s in np.array_split(subsets, 13)]
    alpha, error = (np.concatenate(p) for p in zip(*parts, strict=True))
    best = error.argmin()
    assert q.magnitudes.tolist() == pytest.approx(subsets[best].tolist())
    assert q.scale.item() == pytest.approx(alpha[best] * top.item(), rel=1e-6)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_a_planted_subset_is_found(bits):
    generator = seeded(bits)
    for magnitudes in ([9, 24], [0, 3, 17, 20], [1, 3, 4, 9, 12, 17, 20, 24]):
        if len(magnitudes) != 2 ** (bits - 1):
            continue
        levels = torch.tensor(magnitudes) / 32
        at = torch.randint(len(levels), (16, 4, 3, 3), generator=generator)
        sign = torch.randint(2, at.shape, generator=generator) * 2 - 1
        w = levels[at] * sign * 0.037
        q = fitted(w, bits)
        assert q.magnitudes.tolist() == pytest.approx(
            (levels / levels[-1]).tolist()
        )
        assert torch.allclose(q(w), w, rtol=1e-6)


def test_tolerance_and_bound_of_the_steps(monkeypatch):
    rows = subset_search.SortedRows(samples((1, 500), 'normal', 0))
    levels = torch.tensor([[0.0, 0.1, 0.4, 1.0]], dtype=torch.float64)
    start = torch.ones(1, 1, dtype=torch.float64)
    alpha, error = subset_search.alternate(rows, levels, start)
    want = slow_fit(rows.points[0].tolist(), levels[0].tolist())
    assert (alpha.item(), error.item()) == pytest.approx(want, rel=1e-12)
    monkeypatch.setattr(subset_search, 'MAX_STEPS', 1)
    once, worse = subset_search.alternate(rows, levels, start)
    assert worse > error and once.item() == rows.step(levels, start)[1].item()


def test_rows_are_fitted_as_if_alone(monkeypatch):
    # so coarse that some stop while others go on, far from a fixed point
    monkeypatch.setattr(subset_search, 'TOLERANCE', 0.05)
    rows = samples((6, 200), 'normal', 8) * torch.linspace(0.1, 1, 200)
    levels = torch.tensor([[0.0, 1.0], [0.2, 1.0]], dtype=torch.float64)
    start = torch.ones(6, 2, dtype=torch.float64)
    together = subset_search.alternate(
        subset_search.SortedRows(rows), levels, start
    )
    for i in range(6):
        row = subset_search.SortedRows(rows[i : i + 1])
        for j in range(2):
            alone = subset_search.alternate(
                row, levels[j : j + 1], start[:1, :1]
            )
            for a, b in zip(alone, together, strict=True):
                assert a.item() == pytest.approx(b[i, j].item(), rel=1e-13)


def test_all_nearest_to_zero():
    points = subset_search.SortedRows(torch.tensor([[0.25, -0.5, 1.0, 0.0]]))
    levels = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    start = torch.full((1, 1), 9.0, dtype=torch.float64)
    error, alpha = points.step(levels, start)
    assert error.item() == pytest.approx(math.sqrt(1.3125))
    assert alpha.item() == 1.75 / 4  # starts again from the mean


def test_a_row_may_end_better_from_the_scale_of_the_layer():
    row = torch.tensor([[1.12, 0.03, 0.68, 0.47, 0.13, 0.85, 0.81, 0.83]])
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    values = (row / row.max()).flatten().tolist()
    alpha, error = slow_fit(values, levels.tolist())
    scale = subset_search.fit_rows(row, levels, 0.34).item()
    again = [nearest(v, (levels * scale / 1.12).tolist()) for v in values]
    better = math.dist(values, again)
    assert better < 0.8 * error and scale < 0.9 * alpha * 1.12


def test_ties_go_to_the_lower_magnitude():
    points = torch.tensor([[0.75, 0.75, 1.0]])
    levels = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    error, alpha = subset_search.SortedRows(points).step(
        levels, torch.ones(1, 1, dtype=torch.float64)
    )
    assert error.item() == pytest.approx(math.sqrt(0.125))
    assert alpha.item() == pytest.approx((0.75 + 1) / (0.25 + 0.25 + 1))


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_channels_are_refitted(bits):
    w = samples((6, 20), 'normal', 3)
    w *= torch.logspace(-3, 1, 6)[:, None]
    w[4] *= torch.linspace(0, 1, 20) ** 8
    whole = fitted(w, bits, granularity='tensor')
    q = fitted(w, bits)
    assert torch.equal(q.magnitudes, whole.magnitudes)
    levels = q.magnitudes.double().tolist()
    for row, got, scale, shared in zip(
        w, q(w), q.scale, whole(w), strict=True
    ):
        top = row.abs().max().item()
        alpha, least = slow_fit([abs(v) / top for v in row.tolist()], levels)
        error = torch.linalg.vector_norm(row - got).item()
        # never worse than either start
        assert error <= least * top * (1 + 1e-5)
        assert error <= torch.linalg.vector_norm(row - shared) * (1 + 1e-5)
        if error > least * top * (1 - 1e-5):
            assert scale.item() == pytest.approx(alpha * top, rel=1e-5)


@pytest.mark.parametrize('rows', [1, 40])
def test_a_fit_that_is_seldom_looked_at_is_the_same(rows):
    """It asks a GPU at most 40 times, however many rows and subsets."""
    points = subset_search.SortedRows(samples((rows, 90), 'peaked', rows))
    subsets = subset_search.candidate_subsets(3)
    start = points.points.new_ones(rows, len(subsets))
    want = subset_search.alternate(points, subsets, start)
    with crossings() as found:
        got = subset_search.alternate(points, subsets, start, 25)
    assert 1 < found['nonzero'] <= 40 and found.keys() == {'nonzero'}
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one, other)


def test_sums_of_whole_numbers():
    points = torch.rand(3, 1000, dtype=torch.float64).sort(1).values
    sums = subset_search.whole_sums(points)
    torch.testing.assert_close(sums, points.cumsum(1), rtol=0, atol=1e-8)
    units = [[round(v * 2**40) for v in row] for row in points.tolist()]
    want = [
        [sum(row[: i + 1]) / 2**40 for i in (0, 500, 999)] for row in units
    ]
    assert sums[:, [0, 500, 999]].tolist() == want
