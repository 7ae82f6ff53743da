# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Powers of a base that is searched for, and what kernels make of them."""

from fractions import Fraction

import pytest
import torch
from seeded import seeded

from mmdet_ptq.quantizers import (
    AdaLogQuantizer,
    LogQuantizer,
    Ranges,
    ShiftEncoding,
)
from mmdet_ptq.quantizers.points import progressive_search

ONE = torch.ones(1)
ALL_Q = torch.arange(10.0, 138.0)
every_width = pytest.mark.parametrize('bits', range(2, 9))


def with_q(bits, q, scale=1.0, **kwargs):
    made = AdaLogQuantizer(bits, **kwargs)
    q = torch.as_tensor(q, dtype=torch.float32).reshape(-1)
    made.set_numbers(torch.full_like(q, scale), q)
    return made


def softmax(seed=0):
    return (torch.randn(200, 36, generator=seeded(seed)) * 3).softmax(-1)


def fitted(q, x, p=2.0):
    x = x.reshape(1, -1)
    q.set_range(x.amin(1), x.amax(1))
    q.fit_points(x, torch.full_like(x, 1 / x.numel()), p)
    return q


@every_width
def test_table_is_near_the_power(bits):
    """The numerator is rounded: half of a unit of D, shifted."""
    d = 2 ** (bits + 1) - 2
    table = with_q(bits, ALL_Q, granularity='channel').table.double()
    assert (table[:, 1:] >= table[:, :-1]).all() and (table[:, 0] == 0).all()
    k = torch.arange(2**bits - 1)
    steps = k * ALL_Q[:, None].double()
    shift = 2.0 ** -(steps / 37).floor()
    off = (table[:, 1:].flip(1) - 2.0 ** (-steps / 37)).abs()
    held = shift > 2.0**-120  # below that is no normal float32
    assert (off <= shift * (0.5 / d + 1e-7))[held].all()
    assert (off > shift * 0.4 / d)[held].any()


@every_width
def test_integers_give_the_table(bits):
    """As kernels have them, in exact arithmetic, rounded once."""
    scale, c = 0.7312, 0.16997124254703522
    for shift in (0.0, c):
        q = with_q(bits, 29.0, scale, shift=shift)
        e = q.encoding()
        assert isinstance(e, ShiftEncoding)
        assert e.denominator == 2 ** (bits + 1) - 2
        assert e.numerators.max() == e.denominator
        rows = zip(
            e.table[0].tolist(),
            e.numerators[0].tolist(),
            e.shifts[0].tolist(),
            strict=True,
        )
        for value, numerator, by in rows:
            exact = Fraction(e.scale.item()) * numerator / e.denominator
            exact = exact / 2**by - Fraction(e.offset)
            want = torch.tensor(float(exact), dtype=torch.float64).float()
            tiny = abs(exact) < Fraction(2) ** -126
            assert value == (0.0 if tiny else want.item())


def test_a_product_is_whole_numbers_shifts_and_one_factor():
    p, v = softmax()[:20], torch.randint(-8, 8, (36, 5), generator=seeded(2))
    q = fitted(AdaLogQuantizer(4), p)
    e = q.encoding()
    codes = e.encode(p).long()
    numerators, shifts = e.numerators[0][codes], e.shifts[0][codes]
    # with room for the bits that a shift drops
    room = int(e.shifts.max())
    terms = (numerators.long()[..., None] * v) << (room - shifts)[..., None]
    factor = e.scale.double() / e.denominator / 2.0**room
    got = terms.sum(1) * factor
    want = q(p).double() @ v.double()
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_rows_of_an_encoding_are_taken_with_their_integers():
    q = with_q(3, [20.0, 50.0, 90.0], granularity='channel')
    e, rows = q.encoding(), torch.tensor([2, 0, 2])
    taken = e.take(rows)
    for name in ('table', 'bounds', 'scale', 'numerators', 'shifts'):
        assert torch.equal(getattr(taken, name), getattr(e, name)[rows])
    one = with_q(3, 20.0).encoding().take(rows)
    assert one.numerators.shape == (3, 8) and one.scale.shape == (3,)


@every_width
def test_37_is_log2(bits):
    x = torch.cat([softmax().flatten(), torch.tensor([0.0, -1.0, 2.0])])
    log2 = LogQuantizer(bits)
    log2.set_range(0 * ONE, ONE)
    ours = with_q(bits, 37.0)
    assert torch.equal(ours.table, log2.table)
    assert torch.equal(ours(x), log2(x))


@pytest.mark.parametrize('bits', range(2, 8))
@pytest.mark.parametrize('q', [10, 18, 37, 61, 137])
def test_authors_simulation_takes_a_bit_more(bits, q):
    """As the public code has it: 2^b powers, and zero below them."""
    s, d = 0.9, 2 ** (bits + 1) - 2
    x = softmax().double()
    k = torch.round(-(x / s).clamp(1e-15, 1).log2() * 37 / q)
    shift = (k * q / 37).floor()
    part = torch.round(2.0 ** (-((k * q) % 37) / 37) * d) / d
    want = torch.where(k >= 2**bits, 0.0, s * 2.0**-shift * part).float()
    got = with_q(bits + 1, float(q), s, powers=2**bits)
    assert got.denominator == d
    # a base so near 1 that a value rounded up reaches the one above
    same = torch.isclose(got(x.float()), want, rtol=1e-6, atol=0)
    assert same.float().mean() > 0.999
    one_less = torch.where(k >= 2**bits - 1, 0.0, want.double()).float()
    same = torch.isclose(with_q(bits, float(q), s)(x.float()), one_less)
    assert same.float().mean() > 0.999


def test_default_q():
    assert [AdaLogQuantizer(b).default_q for b in (2, 3, 4)] == [43, 25, 15]
    assert AdaLogQuantizer(8).default_q == 10
    # what counts is how many powers there are
    assert AdaLogQuantizer(4, powers=8).default_q == 25


@pytest.mark.parametrize('bits', [2, 3, 4, 6])
@pytest.mark.parametrize('p', [1.0, 2.0, 2.4])
def test_fit_is_as_good_as_every_q(bits, p):
    x = softmax().reshape(1, -1)[:, ::4]
    q = fitted(AdaLogQuantizer(bits, fixed_scale=1.0), x, p)
    errors = {
        n: (with_q(bits, n)(x) - x).abs().pow(p).mean() for n in ALL_Q.tolist()
    }
    assert errors[q.q.item()] <= 1.01 * min(errors.values())
    assert q.scale.item() == 1
    # with a scale of its own it errs less still
    free = fitted(AdaLogQuantizer(bits), x, p)
    assert (free(x) - x).abs().pow(p).mean() <= errors[q.q.item()]


def test_fit_is_the_progressive_search():
    x = softmax().reshape(1, -1)[:, ::9]
    shares = torch.full_like(x, 1 / x.numel())
    q = fitted(AdaLogQuantizer(3), x)
    found = progressive_search(q, x, shares, 2.0)
    assert [q.scale.item(), q.q.item()] == [t.item() for t in found[:2]]


def test_ranges_are_tried_with_the_default_q():
    """A range observer may not depend on what was found before."""
    x = softmax()[:1]
    q = with_q(3, 99.0)
    y = q.trial(x, Ranges(0 * ONE[:, None], ONE[:, None]))[0]
    assert torch.equal(y, with_q(3, 25.0)(x))
    assert q.q.item() == 99


def test_candidates_keep_the_q_and_a_fixed_scale_tries_it():
    q, shares = with_q(3, 99.0), torch.tensor([1.0, 0.5])
    found = q.candidates(0 * ONE, 2 * ONE, shares)
    assert found.q.tolist() == [[99, 99]]
    assert found.scale.tolist() == [[2, 1]]
    q = AdaLogQuantizer(3, fixed_scale=1.0)
    found = q.candidates(0 * ONE, ONE, torch.linspace(1, 0.1, 128))
    assert torch.equal(found.q[0], ALL_Q) and found.scale.unique() == 1


def test_candidates_lie_where_the_range_does():
    ends = torch.zeros(2, device='meta')
    found = AdaLogQuantizer(4).candidates(ends, ends, ends)
    assert {t.device.type for t in found} == {'meta'}


def test_coarse_and_refined():
    x = torch.linspace(-1, 10, 12)[None]  # 1 to 10 are above zero
    q = AdaLogQuantizer(4)
    found = q.coarse(x, 128)
    assert found.q.unique()[[0, -1]].tolist() == [10, 137]
    assert found.scale.unique()[[0, -1]].tolist() == [9, 10]
    assert found.between_scales[0, 0].item() == pytest.approx(1 / 7)
    kept = type(found)(*(t[:, 40:42] for t in found))
    near = q.refined(kept, 4)
    assert near.scale[:, ::4].equal(kept.scale)
    assert near.q[:, ::4].equal(kept.q)
    off = (near.scale - kept.scale.repeat_interleave(4, 1)).abs()
    assert 0 < off.max() <= 1 / 14
    assert near.between_scales[0, 0].item() == pytest.approx(1 / 14)
    fixed = AdaLogQuantizer(4, fixed_scale=1.0)
    found = fixed.refined(fixed.coarse(x, 128), 3)
    assert found.scale.unique().tolist() == [1] and found.q.shape == (1, 384)


def test_storage():
    assert AdaLogQuantizer(4).parameter_bits(3) == 3 * 40
    assert AdaLogQuantizer(4, fixed_scale=1.0).parameter_bits(3) == 24
