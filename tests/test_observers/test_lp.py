# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import numpy as np
import pytest
import torch
from crossings import crossings

from mmdet_ptq.observers import LpObserver, lp, search_weight_range
from mmdet_ptq.observers.lp import search_levels
from mmdet_ptq.observers.points import points_of
from mmdet_ptq.observers.search import GridError, power_
from mmdet_ptq.quantizers import BaseQuantizer, Granularity, UniformQuantizer

SIZE = 6000
BITS = (2, 3, 4, 6, 8)


def data(name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(SIZE)
    if name == 'laplace':
        x = rng.laplace(size=SIZE)
    elif name == 'relu':
        x = np.maximum(x, 0)
    elif name == 'negative':
        x = -np.abs(x)
    elif name == 'silu':
        x = 2 * x / (1 + np.exp(-2 * x))
    elif name == 'outlier':
        x[:4] = [9.0, -14.0, 30.0, 6.0]
    return x.astype(np.float32)


def true_error(x, low, high, bits, p, symmetric=False):
    """Mean error in float64, from the formulas of the specification."""
    n = 2**bits - 1
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if symmetric:
        s = max(np.maximum(-low, high) / (n / 2), 1e-8)
        q = (
            np.clip(np.round(x / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            * s
        )
    else:
        s = max((high - low) / n, 1e-8)
        z = np.clip(-np.round(low / s), 0, n)
        q = (np.clip(np.round(x / s) + z, 0, n) - z) * s
    return float((np.abs(q - x) ** p).mean())


def exhaustive(x, bits, p):
    """Least error over a product grid of both ends, then refined."""
    x = x.astype(np.float64)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    few = np.linspace(0, 1, 33)[1:] ** 2
    lows = low * np.append(few, 0.0) if low < 0 else [0.0]
    highs = high * np.append(few, 0.0) if high > 0 else [0.0]
    some = np.concatenate([x[::4], [low, high]])
    ranked = sorted(
        (true_error(some, a, b, bits, p), a, b) for a in lows for b in highs
    )[:8]
    around = (0.96, 0.98, 1.0, 1.02, 1.04)
    return min(
        true_error(x, a * u, b * v, bits, p)
        for _, a, b in ranked
        for u in around
        for v in around
    )


@pytest.mark.parametrize('p', [2.0, 2.4])
@pytest.mark.parametrize(
    'name', ['gauss', 'laplace', 'relu', 'negative', 'silu', 'outlier']
)
def test_as_good_as_an_exhaustive_search(name, p):
    x = data(name)
    observer = LpObserver(p)
    # in parts: the histogram grows on the way
    for part in np.array_split(x, 3):
        observer.observe(torch.from_numpy(part))
    for bits in BITS if p == 2.4 else (3, 8):
        q = UniformQuantizer(bits)
        low, high = (r.item() for r in observer.ranges(q))
        assert low >= min(x.min(), 0) * 1.04
        assert high <= max(x.max(), 0) * 1.04
        x64 = x.astype(np.float64)
        got = true_error(x64, low, high, bits, p)
        full = true_error(x64, x64.min(), x64.max(), bits, p)
        assert got <= full * 1.001
        assert got <= exhaustive(x, bits, p) * 1.02, bits


@pytest.mark.parametrize('search', ['1d', '2d', 'upper'])
@pytest.mark.parametrize('symmetric', [False, True])
def test_never_worse_than_the_extremes_on_its_points(search, symmetric):
    for name in ('gauss', 'outlier', 'silu'):
        observer = LpObserver(search=search, steps=10)
        observer.observe(torch.from_numpy(data(name)))
        for bits in (2, 4, 8):
            q = UniformQuantizer(bits, symmetric)
            error = GridError(q, *observer.points(bits, 0), 2.4)
            got = error(*observer.ranges(q)[:2])
            assert got <= error(observer.low, observer.high)


def test_two_ends_help_lopsided_data():
    observer = {s: LpObserver(search=s) for s in ('1d', '2d', 'auto')}
    errors = {}
    x = data('silu')
    x[0] = -12.0
    for name, each in observer.items():
        each.observe(torch.from_numpy(x))
        low, high = (r.item() for r in each.ranges(UniformQuantizer(3)))
        errors[name] = true_error(x.astype(np.float64), low, high, 3, 2.4)
    assert errors['2d'] == errors['auto'] < 0.7 * errors['1d']


def test_many_rows_and_levels():
    torch.manual_seed(0)
    scale = 10 ** torch.linspace(-2, 2, 24)
    x = torch.randn(8, 24, 20, 20) * scale.view(1, -1, 1, 1)
    x[:, 12:] = x[:, 12:].relu()
    for bits in (3, 8):
        observer = LpObserver()
        observer.bind(Granularity('channel', 1), 2)
        observer.observe(x, 0)
        observer.observe(x * 2, 1)
        q = UniformQuantizer(bits, granularity='channel', per_level=True)
        low, high = observer.ranges(q)
        rows = observer.granularity.rows(x).double().cpu().numpy()
        for k in (0, 7, 12, 23):
            got = true_error(
                rows[k], low[0, k].item(), high[0, k].item(), bits, 2.4
            )
            best = exhaustive(rows[k], bits, 2.4)
            assert got <= best * 1.04
            twice = true_error(
                rows[k] * 2, low[1, k].item(), high[1, k].item(), bits, 2.4
            )
            assert twice / 2**2.4 == pytest.approx(got, rel=0.02)


def test_zeros_do_not_count_as_half_a_bin():
    x = torch.cat([torch.zeros(10**5), torch.rand(100) * 8])
    observer = LpObserver()
    observer.observe(x)
    share = observer.points(8, 0)[1]
    assert float(share.sum()) < 0.01
    got = observer.ranges(UniformQuantizer(2))
    sparse = LpObserver()
    sparse.observe(x[x > 0])
    assert got[1].item() == pytest.approx(
        sparse.ranges(UniformQuantizer(2))[1].item(), rel=0.05
    )


@pytest.mark.parametrize('p', [1.0, 2.0, 2.4, 0.5])
def test_power(p):
    x = torch.tensor([-3.0, -0.0, 0.0, 1e-20, 2.5])
    want = x.abs().double() ** p
    assert torch.allclose(
        power_(x.clone(), p).double(), want, rtol=1e-5, atol=1e-30
    )


@pytest.mark.parametrize(
    'kind, size, shape',
    [
        ('channel', None, (12, 5, 3, 3)),
        ('channel', None, (3, 200, 3, 3)),
        ('group', 15, (6, 5, 3, 3)),
        ('tensor', None, (9, 7)),
    ],
)
@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('p', [2.0, 2.4])
def test_weights_against_a_loop(kind, size, shape, symmetric, p, monkeypatch):
    # long rows are sampled
    monkeypatch.setattr(lp, 'WEIGHT_SAMPLE', 510)
    torch.manual_seed(0)
    w = torch.randn(shape) * 10 ** torch.randn(
        shape[0], *[1] * (len(shape) - 1)
    )
    for bits in (2, 4, 8):
        q = UniformQuantizer(
            bits, symmetric, kind, group_size=size, role='weight'
        )
        low, high = search_weight_range(w, q, p)
        rows = q.granularity.rows(w).double().cpu().numpy()
        assert low.shape == high.shape == (len(rows),)
        fractions = (np.arange(1, 101) / 100) ** 2
        for k, row in enumerate(rows):

            def error(a, b, row=row, bits=bits):
                return true_error(row, a, b, bits, p, symmetric)

            got = error(low[k].item(), high[k].item())
            ends = row.min(), row.max()
            assert got <= error(*ends) * (1 + 1e-4)
            best = min(error(ends[0] * f, ends[1] * f) for f in fractions)
            assert got <= best * 1.12
        # and on average far closer
        q.set_range(low, high)
        assert torch.isfinite(q(w)).all()


def test_long_rows_are_sampled_and_checked_exactly(monkeypatch):
    torch.manual_seed(0)
    w = torch.randn(600, 2000)
    w[::3] = w[::3] ** 3
    q = UniformQuantizer(3, granularity='channel', role='weight')
    low, high = search_weight_range(w, q)
    x = w.double().cpu().numpy()
    errors = np.array(
        [
            [
                true_error(r, a, b, 3, 2.0),
                true_error(r, r.min(), r.max(), 3, 2.0),
            ]
            for r, a, b in zip(x, low.tolist(), high.tolist(), strict=True)
        ]
    )
    assert (errors[:, 0] <= errors[:, 1] * (1 + 1e-6)).all()
    monkeypatch.setattr(lp, 'WEIGHT_SAMPLE', 10**6)
    low, high = search_weight_range(w, q)
    whole = np.mean(
        [
            true_error(r, a, b, 3, 2.0)
            for r, a, b in zip(x, low.tolist(), high.tolist(), strict=True)
        ]
    )
    assert errors[:, 0].mean() <= whole * 1.05


def test_weights_that_are_odd():
    q = UniformQuantizer(4, granularity='channel', role='weight')
    for w in (
        torch.zeros(3, 2),
        torch.ones(3, 2),
        torch.empty(0, 4),
        torch.empty(3, 0),
        -torch.ones(2, 1000),
        torch.ones(1).half(),
    ):
        low, high = search_weight_range(w, q)
        assert len(low) == len(high) == len(w)
        assert (low <= high).all() and torch.isfinite(high - low).all()
    with pytest.raises(ValueError, match='p must'):
        search_weight_range(torch.ones(2, 2), q, p=-1)
    with pytest.raises(ValueError, match='steps'):
        search_weight_range(torch.ones(2, 2), q, steps=0)


def test_only_what_is_searchable_is_searched():
    class Fixed(BaseQuantizer):
        set_range = encoding = num_rows = parameter_bits = None

    with pytest.raises(ValueError, match='a Fixed is not Searchable'):
        search_weight_range(torch.ones(2, 3), Fixed(4))


@pytest.mark.parametrize('search', ['auto', '1d', 'upper'])
@pytest.mark.parametrize('rows', [1, 3, 20])
def test_levels_that_are_searched_at_once(rows, search):
    """As each by itself, whatever the others are: padded points count 0."""
    torch.manual_seed(0)
    grain = dict(granularity='channel') if rows > 1 else {}
    q = UniformQuantizer(4, per_level=True, **grain)
    one, other = LpObserver(search=search), LpObserver(search=search)
    for observer in (one, other):
        observer.bind(q.granularity, 2)
    one.observe(torch.randn(1, rows, 7000), 0)
    one.observe(torch.randn(1, rows, 40) * 100, 1)
    other.observe(torch.randn(1, rows, 900) ** 3, 0)
    levels = [(one, 0), (one, 1), (other, 0)]
    for observer in (one, other):
        observer.end_image()
    low, high = search_levels(levels, q)
    assert low.shape == high.shape == (3, rows)
    for i, level in enumerate(levels):
        alone = search_levels([level], q)
        error = GridError(q, *(t[0] for t in points_of([level], 4)), 2.4)
        at_once, want = (
            error(a[:, None], b[:, None])
            for a, b in ((low[i], high[i]), (alone[0][0], alone[1][0]))
        )
        torch.testing.assert_close(at_once, want, rtol=1e-3, atol=0)


@pytest.mark.parametrize('p', [2.0, 2.4])
def test_a_weight_asks_for_no_number(p):
    """However many rows, weights and candidates there are."""
    q = UniformQuantizer(4, granularity='channel', role='weight')
    for w in (torch.rand(6, 9), torch.rand(300, 100, 3, 3)):
        for steps in (5, 100):
            with crossings() as found:
                search_weight_range(w, q, p, steps)
            assert not found
