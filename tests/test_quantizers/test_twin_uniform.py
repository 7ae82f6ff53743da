# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Two step sizes in one tensor."""

import pytest
import torch
from seeded import seeded
from torch.nn import functional as F

from mmdet_ptq.quantizers import TwinUniformQuantizer

ONE = torch.ones(1)
GELU = 0.16997124254703522
splits = pytest.mark.parametrize('i', [0, 1, 3, 6, 19])
every_width = pytest.mark.parametrize('bits', [2, 3, 4, 6, 8])


def softmax(size=4000):
    return torch.rand(size, generator=seeded(0)) ** 4


def twin(bits, high, low, **kwargs):
    q = TwinUniformQuantizer(bits, **kwargs)
    q.set_numbers(ONE * high, ONE * low)
    return q


def clean(x, bits, split):
    """The two cases of the paper, s = 1."""
    n = 2 ** (bits - 1) - 1
    upper = (x * n).round().clamp(0, n) / n
    lower = (x * n / split).round().clamp(0, n) * split / n
    return torch.where(x >= split, upper, lower)


def added(x, bits, split):
    """The authors' code, s = 1: both, each clamped at the split."""
    n = 2 ** (bits - 1) - 1
    upper = (x.clamp(split, 1) * n).round().clamp(0, n) / n
    lower = (x.clamp(0, split) * n / split).round().clamp(0, n)
    return upper + lower * split / n


def test_softmax_by_hand():
    """Three bits: steps of a half over 3 up to it, then thirds."""
    q = twin(3, 1.0, 0.5)
    want = torch.tensor([[0, 1 / 6, 2 / 6, 0.5, 0.5, 2 / 3, 1]])
    torch.testing.assert_close(q.encoding().table, want)
    x = torch.tensor([-1.0, 0.08, 0.09, 0.41, 0.42, 0.58, 0.59, 0.9, 5])
    want = torch.tensor([0, 0, 1, 2, 3, 3, 4, 6, 6]) / 6
    torch.testing.assert_close(q(x), want)


def test_gelu_by_hand():
    q = twin(3, 3.0, 0.4, form='gelu')
    want = [[-0.4, -0.3, -0.2, -0.1, 0, 1, 2, 3]]
    torch.testing.assert_close(q.encoding().table, torch.tensor(want))
    x = torch.tensor([-9.0, -0.24, -0.04, 0.4, 0.6, 2.4, 9])
    want = torch.tensor([-0.4, -0.2, 0, 0, 1, 2, 3])
    torch.testing.assert_close(q(x), want)


@every_width
@splits
def test_softmax_is_the_paper_where_that_keeps_the_order(bits, i):
    x, split, n = softmax().double(), 2.0**-i, 2 ** (bits - 1) - 1
    got, want = twin(bits, 1.0, split)(x.float()), clean(x, bits, split)
    # from the split to the next step of the upper grid above it, the paper
    # knows only that grid; where two steps are as near, a last bit decides
    above = (int(split * n) + 1) / n
    inside = (x < split) | (x > above)
    off = (got - want).abs() > 1e-6
    assert not (off & inside & ~_tie(x, split, n)).any()
    # and anywhere, ours is the nearer one
    assert ((got - x).abs() <= (want - x).abs() + 1e-6).all()


def _tie(x, split, n):
    steps = torch.where(x >= split, x * n, x * n / split)
    return ((steps % 1) - 0.5).abs() < 1e-4


@every_width
@splits
def test_monotone_and_idempotent(bits, i):
    for q in (
        twin(bits, 0.9, 0.9 * 2.0**-i),
        twin(bits, 2.0, 0.17 * 2.0**-i, form='gelu'),
    ):
        x = (torch.randn(4000, generator=seeded(i))).sort().values
        y = q(x)
        assert (y[1:] >= y[:-1]).all() and torch.equal(q(y), y)
        assert len(y.unique()) <= 2**bits


def test_the_paper_is_not_monotone():
    """Why it is not followed there: 0.06 and 0.07 change places."""
    x = torch.tensor([0.06, 0.07])
    assert clean(x, 4, 2.0**-4).tolist() == [0.0625, 0]
    assert twin(4, 1.0, 2.0**-4)(x).tolist() == [0.0625, 0.0625]


@every_width
@splits
def test_sum_of_both_grids(bits, i):
    x, split = softmax(), 2.0**-i
    q = twin(bits, 1.0, split, compat_sum=True)
    got, want = q(x), added(x.double(), bits, split)
    off = (got - want).abs() > 1e-6
    # ties of either grid
    n = 2 ** (bits - 1) - 1
    tie = _tie(x, split, n) | _tie(x, 0.0, n)
    assert not (off & ~tie).any()
    codes = q.encode(x)
    assert torch.equal(q.decode(codes), got) and codes.max() < 2**bits
    if i == 3 and bits > 3:  # what the search of the authors hides
        assert (got - x).mean() > 0.09


@every_width
def test_aligned_steps_differ_by_a_power_of_two(bits):
    q = TwinUniformQuantizer(
        bits, form='gelu', align_pow2=True, granularity='channel'
    )
    high = torch.tensor([4.0, 1.7, 0.05, 1e-3, 300.0, 1e9, 0.0, 5.0])
    low = torch.tensor([GELU] * 7 + [0.0])
    q.set_range(-low, high)
    above, below = q.high / (q.steps), q.low / (q.steps + 1)
    exponent = (above / below).log2()
    torch.testing.assert_close(exponent, exponent.round())
    assert exponent.min() == -5 and exponent.max() == 24
    # as near to the range as a power of two can be
    near = slice(0, 3)
    ratio = q.high[near] / high[near]
    assert (ratio.log2().abs() <= 0.5 + 1e-5).all()
    assert q.high[-1].item() == pytest.approx(5)
    assert q.parameter_bits(8) == 8 * 40


def test_range():
    q = TwinUniformQuantizer(4)
    q.set_range(0 * ONE, 0.8 * ONE)
    assert q.high.item() == pytest.approx(0.8)
    assert q.low.item() == pytest.approx(0.1)
    q = TwinUniformQuantizer(4, fixed_scale=1.0)
    q.set_range(0 * ONE, 0.8 * ONE)
    assert [q.high.item(), q.low.item()] == [1, 0.125]
    assert q.parameter_bits(1) == 8
    q = TwinUniformQuantizer(4, form='gelu')
    q.set_range(-GELU * ONE, 0.8 * ONE)
    assert q.low.item() == pytest.approx(GELU)
    assert q.parameter_bits(1) == 64


def test_candidates_are_splits_where_the_scale_is_fixed():
    q, shares = TwinUniformQuantizer(4, fixed_scale=1.0), torch.ones(22)
    found = q.candidates(0 * ONE, 0.3 * ONE, shares)
    want = [2.0 ** -min(i, 19) for i in range(22)]
    assert found.low[0].tolist() == want and found.high.unique() == 1


@pytest.mark.parametrize('aligned', [False, True])
def test_the_low_end_of_a_gelu_is_not_searched(aligned):
    """Shares are of the high end; the paper gives the other step."""
    q = TwinUniformQuantizer(4, form='gelu', align_pow2=aligned)
    low, high, shares = GELU * ONE, 3 * ONE, torch.tensor([0.25, 0.5, 1.0])
    found = q.candidates(-low, high, shares)
    assert torch.allclose(found.low, torch.full((1, 3), GELU))
    q.adopt(found, torch.tensor([1]))
    assert q.low.item() == pytest.approx(GELU)
    if aligned:
        ratio = (found.high / 7) / (found.low / 8)
        assert torch.equal(ratio.log2(), ratio.log2().round())
    else:
        assert found.high[0].tolist() == [0.75, 1.5, 3.0]
        assert q.high.item() == 1.5


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_fit_is_as_good_as_every_split(bits):
    x = softmax(1000)[None] * 0.9
    q = TwinUniformQuantizer(bits, fixed_scale=1.0)
    q.set_range(0 * ONE, ONE)
    q.fit_points(x, torch.ones_like(x))
    errors = [
        (twin(bits, 1.0, 2.0**-i)(x) - x).square().mean() for i in range(20)
    ]
    assert (q(x) - x).square().mean() == min(errors)
    free = TwinUniformQuantizer(bits)
    free.set_range(0 * ONE, ONE)
    free.fit_points(x, torch.ones_like(x))
    assert (free(x) - x).square().mean() < min(errors)
    split = (free.low / free.high).log2()
    assert split == split.round()


def test_a_gelu_is_given_by_its_range():
    x = F.gelu(torch.randn(1, 500, generator=seeded(0)))
    q = TwinUniformQuantizer(4, form='gelu')
    q.set_range(x.amin(1), x.amax(1))
    y = q(x)
    q.fit_points(x, torch.ones_like(x))
    assert torch.equal(q(x), y)


@pytest.mark.parametrize(
    'given, told',
    [
        (dict(form='relu'), 'form'),
        (dict(form='gelu', fixed_scale=1.0), 'fixed_scale=1.0 is not for'),
        (dict(form='gelu', compat_sum=True), 'compat_sum=True is not for'),
        (dict(align_pow2=True), "not for form='softmax'"),
        (dict(fixed_scale=-1.0), 'fixed_scale'),
        (dict(role='weight'), "role 'act'"),
    ],
)
def test_wrong_arguments(given, told):
    with pytest.raises(ValueError, match=told):
        TwinUniformQuantizer(4, **given)
