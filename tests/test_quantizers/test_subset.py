# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import math
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from promises import check_codes, check_output, check_state, tensors

from mmdet_ptq.quantizers import SubsetQuantizer
from mmdet_ptq.quantizers.subset import search as subset_search
from mmdet_ptq.registry import QUANTIZERS, build_from

# in 32nds, as in the paper
UNIVERSE = [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 18, 20, 24, 32]


def make(magnitudes, scale, **kwargs):
    bits = int(math.log2(len(magnitudes))) + 1
    q = SubsetQuantizer(bits, **kwargs)
    q.set_range(-torch.tensor(scale), torch.zeros(len(scale)))
    q.magnitudes = torch.tensor(magnitudes)
    return q.eval()


def fitted(weight, bits, **kwargs):
    q = SubsetQuantizer(bits, **kwargs)
    assert q.fit(weight) is True and bool(q.initialized)
    return q.eval()


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


def samples(shape, kind, seed):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator)
    if kind == 'peaked':
        w = w * w.abs() * 1e-3
    elif kind == 'sparse':
        w = w * (torch.rand(shape, generator=generator) < 0.3)
    return w


def test_universal_set():
    want = [m / 32 for m in UNIVERSE]
    assert subset_search.universal_set().tolist() == want


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
    values = (w.abs().double() / top).flatten().numpy()
    subsets = np.array(list(every_subset(8)))
    parts = [fast_fits(values, s) for s in np.array_split(subsets, 13)]
    alpha, error = (np.concatenate(p) for p in zip(*parts, strict=True))
    best = error.argmin()
    assert q.magnitudes.tolist() == pytest.approx(subsets[best].tolist())
    assert q.scale.item() == pytest.approx(alpha[best] * top.item(), rel=1e-6)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_a_planted_subset_is_found(bits):
    generator = torch.Generator().manual_seed(bits)
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


def test_layer_shapes():
    w = samples((4, 6), 'normal', 1)
    plain = fitted(w, 3)
    for weight, axis in (
        (w, 0),
        (w.view(4, 6, 1, 1), None),
        (w.view(4, 1, 2, 3), 0),  # depthwise
        (w.view(4, 2, 3, 1).transpose(0, 1), 1),  # transposed convolution
        (w.view(4, 2, 1, 3).contiguous(memory_format=torch.channels_last), 0),
    ):
        q = fitted(weight, 3, axis=axis)
        assert torch.equal(q.scale, plain.scale) and q.scale.shape == (4,)
        assert torch.equal(q.granularity.rows(q(weight)), plain(w))


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    x=tensors(),
    bits=st.sampled_from([2, 3, 4]),
    kind=st.sampled_from(['tensor', 'channel']),
    axis=st.sampled_from([0, 1]),
)
def test_promises_after_a_fit(x, bits, kind, axis):
    def new():
        return SubsetQuantizer(bits, kind, axis)

    q = new()
    assert q.fit(x) is True
    with torch.no_grad():
        y = q.eval()(x)
    check_codes(q, x, y)
    check_output(q, x, y)
    check_state(q, new(), x, y)
    assert q.scale.shape == (1 if kind == 'tensor' else x.shape[axis],)
    if x.numel():
        assert bool((y * x >= 0).all())  # no sign is lost
        assert (y - x).double().norm() <= x.double().norm() * (1 + 1e-6)


def test_extremes():
    w = samples((3, 8), 'normal', 0)
    for factor in (1e-38, 1e-12, 1e20, 1e37):
        q = fitted(w * factor, 4)
        assert torch.isfinite(q(w * factor)).all()
        want = fitted(w, 4)(w) * factor
        if factor != 1e-38:
            assert torch.allclose(q(w * factor), want, rtol=1e-5)
    # the least values are normal numbers, apart even without subnormal ones
    q = make([0.03125, 1.0], [0.0])
    values = q.values(torch.arange(4)).abs()
    assert values.min() >= torch.finfo(torch.float32).tiny
    zeros = torch.zeros(3, 8)
    assert torch.equal(fitted(zeros, 2)(zeros), zeros)
    # one channel of zeros, under magnitudes without a zero
    w = torch.cat([torch.tensor([[0.5, -1.0] * 4]), torch.zeros(1, 8)])
    q = fitted(w.repeat(1, 9)[:, 1:], 2)
    assert torch.isfinite(q.scale).all() and q(w)[1].abs().max() < 1e-6
    assert fitted(torch.zeros(0, 3), 2)(torch.zeros(0, 3)).shape == (0, 3)
    assert fitted(torch.tensor([[2.0]]), 4)(torch.tensor([2.0])) == 2.0
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match='NaN or Inf'):
            SubsetQuantizer().fit(torch.tensor([[1.0, bad]]))


def test_by_hand_without_zero():
    q = make([0.25, 1.0], [2.0])  # -2 -0.5 0.5 2, middles -1.25 0 1.25
    x = torch.tensor([-9.0, -1.3, -1.25, -0.1, -0.0, 0.0, 1.25, 1.3, 9.0])
    assert q.encode(x).tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    want = [-2.0, -2.0, -0.5, -0.5, 0.5, 0.5, 0.5, 2.0, 2.0]
    assert q(x).tolist() == want
    x = torch.tensor([-9.0, -2.0, -0.6, -0.5, -0.4, 0.5, 1.9, 2.0, 9.0])
    assert q.lower_codes(x).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_by_hand_with_zero():
    q = make([0.0, 0.25, 0.5, 1.0], [4.0])  # -4 -2 -1 0 1 2 4
    x = torch.tensor([-9.0, -3.0, -0.5, -0.0, 0.5, 0.6, 1.5, 3.1, 9.0])
    assert q.encode(x).tolist() == [0, 1, 3, 3, 3, 4, 4, 6, 6]
    assert q(x).tolist() == [-4, -2, 0, 0, 0, 1, 1, 4, 4]
    x = torch.tensor([-9.0, -3.9, -0.1, 0.0, 0.1, 2.0, 3.9, 4.0, 9.0])
    assert q.lower_codes(x).tolist() == [0, 0, 2, 3, 3, 5, 5, 5, 5]
    # the spare code of the second zero
    assert q.decode(torch.tensor([6, 7])).tolist() == [4, 4]


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_lower_codes_bracket(bits):
    w = samples((5, 40), 'peaked', bits)
    q = fitted(w, bits)
    codes = q.lower_codes(w)
    low, high = q.values(codes), q.values(codes + 1)
    assert codes.dtype == torch.int32 and bool((low < high).all())
    top = q.scale[:, None]
    assert bool(((low <= w) | (w < -top)).all())
    assert bool(((w <= high) | (w > top)).all())
    # the nearest value is one of the two
    assert bool(((q(w) == low) | (q(w) == high)).all())
    assert torch.equal(q.lower_codes(w.double()), codes)


def test_codes_rise_with_the_values():
    for magnitudes in ([0.0, 0.5, 0.75, 1.0], [0.1, 0.5, 0.75, 1.0]):
        q = make(magnitudes, [3.0])
        codes = q.encode(torch.linspace(-4, 4, 1001))
        assert bool((codes.diff() >= 0).all())
        want = 7 if magnitudes[0] == 0 else 8
        assert codes.unique().tolist() == list(range(want))
        values = q.values(codes.unique()).tolist()
        assert all(a < b for a, b in pairwise(values))


@pytest.mark.parametrize('kind, k', [('tensor', 1), ('channel', 3)])
@pytest.mark.parametrize('zero', [False, True])
def test_gradients(kind, k, zero):
    q = make(
        [0.0 if zero else 0.1, 0.25, 0.5, 1.0],
        [1.0, 2.0, 3.0][:k],
        granularity=kind,
    )
    x = samples((3, 50), 'normal', 5) * 2
    # on the outermost value itself: still inside
    x[:, 0] = q.scale
    before = q(x)
    q.learn_step()
    assert [name for name, _ in q.named_parameters()] == ['scale']
    x.requires_grad_()
    y = q.train()(x)
    assert torch.equal(y, before)
    grad = samples((3, 50), 'normal', 6)
    y.backward(grad)
    scale = q.scale.detach()[:, None]
    inside = (x.detach().abs() <= scale).expand(3, 50)
    assert 0 < inside.sum() < inside.numel() and bool(inside[:, 0].all())
    assert torch.equal(x.grad, grad * inside)
    # with fixed codes a value is linear in its scale
    want = (grad * before / scale).sum() if k == 1 else None
    if k == 3:
        want = (grad * before / scale).sum(1)
    assert torch.allclose(q.scale.grad, want.reshape(k), rtol=1e-5)
    q.scale.grad = None
    (q.values(q.encode(x)) * grad).sum().backward()
    assert torch.allclose(q.scale.grad, want.reshape(k), rtol=1e-5)
    assert not q.decode(q.encode(x)).requires_grad


def test_learned_scale_stays_positive():
    q = make([0.0, 1.0], [2.0])
    q.learn_step()
    q.learn_step()
    for value in (-0.25, 0.0):
        q.scale.data.fill_(value)
        x = torch.tensor([0.3])
        assert torch.equal(q(x), q.decode(q.encode(x)))
        assert q.scale.item() == max(abs(value), 2.0**-100)
    q.scale.data.fill_(-0.5)
    q.learn_step(False)
    assert not list(q.parameters()) and q.scale.item() == 0.5
    other = SubsetQuantizer(2)
    other.set_range(-torch.ones(3), torch.ones(3))
    other.learn_step()
    other.load_state_dict(q.state_dict())
    assert torch.equal(other.scale, q.scale)
    # a fit keeps it a parameter
    other.fit(torch.randn(4, 5))
    assert other.scale.shape == (4,) and len(list(other.parameters())) == 1


def test_set_range():
    q = SubsetQuantizer(3, 'tensor')
    q.set_range(torch.tensor([-3.0]), torch.tensor([2.0]))
    assert q.scale.tolist() == [3.0]
    assert q.magnitudes.tolist() == [0.0, 6 / 32, 16 / 32, 1.0]
    q.fit(samples((4, 30), 'normal', 0))
    q.set_range(torch.tensor([[0.0]]), torch.tensor([[2.0]]))
    assert q.scale.tolist() == [2.0] and q.magnitudes[1] == 6 / 32
    for bits, want in ((2, [0, 32]), (4, [0, 2, 4, 8, 12, 17, 20, 32])):
        got = SubsetQuantizer(bits).magnitudes * 32
        assert got.tolist() == want


def test_nan_is_not_hidden():
    y = make([0.0, 1.0], [2.0])(torch.tensor([math.nan, 1.5, math.inf]))
    assert torch.isnan(y).tolist() == [True, False, False]
    assert y[1:].tolist() == [2.0, 2.0]


def test_storage_bits():
    shape = (8, 4, 3, 3)
    assert SubsetQuantizer(3).storage_bits(shape) == 288 * 3 + 8 * 32 + 15
    q = SubsetQuantizer(4, 'tensor')
    assert q.storage_bits(shape) == 288 * 4 + 32 + 15


def nearest_by_division(x, scale, magnitudes):
    """Codes of the nearest values, the lower of two magnitudes as near."""
    ratio = x / scale
    middle = (magnitudes[1:] + magnitudes[:-1]) / 2
    near = torch.bucketize(ratio.abs(), middle)
    below = len(magnitudes) - 1
    above = below + int(magnitudes[0] != 0)
    return torch.where(ratio < 0, below - near, above + near)


@pytest.mark.parametrize('bits', [2, 3, 4])
def test_bounds_are_where_the_quotient_changes_sides(bits):
    generator = torch.Generator().manual_seed(bits)
    subsets = subset_search.candidate_subsets(bits).float()
    at = torch.randint(len(subsets), (30,), generator=generator)
    for magnitudes in (subset_search.default_subset(bits), *subsets[at]):
        exponents = torch.randint(-99, 127, (8,), generator=generator)
        scale = torch.rand(8, generator=generator) + 1
        scale = scale * torch.exp2(exponents)
        q = SubsetQuantizer(bits)
        q.load_state_dict(
            dict(
                magnitudes=magnitudes,
                scale=scale,
                initialized=torch.tensor(True),
            )
        )
        middle = (magnitudes[1:] + magnitudes[:-1]) / 2
        x = [scale[:, None] * middle]
        for _ in range(6):  # and its neighbours on both sides
            x.insert(0, torch.nextafter(x[0], torch.tensor(0.0)))
            x.append(torch.nextafter(x[-1], torch.tensor(math.inf)))
        x = torch.cat([*x, scale[:, None] * magnitudes], 1)
        x = torch.cat([x, -x], 1)
        want = nearest_by_division(x, scale[:, None], magnitudes)
        assert torch.equal(q.encode(x).long(), want)


@pytest.mark.parametrize('bits', [1, 5, 8, 4.0, True])
def test_wrong_bits(bits):
    with pytest.raises(ValueError, match=r'2, 3 or 4.*(Uniform|LLA)'):
        SubsetQuantizer(bits)


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(role='act'), "'weight'.*UniformQuantizer"),
        (dict(granularity='group'), 'tensor or channel'),
        (dict(granularity='layer'), 'tensor or channel'),
        (dict(axis=0.5), 'axis'),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SubsetQuantizer(**kwargs)


def test_from_a_config():
    q = build_from(QUANTIZERS, dict(type='SubsetQuantizer', bits=2))
    assert q.granularity.kind == 'channel' and q.granularity.axis == 0
    with pytest.raises(ValueError, match='4 scales do not fit'):
        fitted(torch.randn(4, 3), 2)(torch.randn(5, 3))
