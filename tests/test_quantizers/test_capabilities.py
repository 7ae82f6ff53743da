# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What quantizers say that they can do, and that they can."""

import pytest
import torch
from promises import FACTORIES, bits_of, fit
from seeded import seeded

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import (
    AdaLogQuantizer,
    ChannelGroups,
    CodebookQuantizer,
    FitsPoints,
    FitsTensor,
    Granularity,
    HasRange,
    InstanceGroupQuantizer,
    LearnsEnds,
    LearnsStep,
    LearnsTable,
    LLAQuantizer,
    LogQuantizer,
    PerInstance,
    PlacesValues,
    PowerOfTwoQuantizer,
    Ranges,
    Refines,
    Rescales,
    Searchable,
    SoftRounding,
    SubsetQuantizer,
    TwinUniformQuantizer,
    UniformQuantizer,
)

each = pytest.mark.parametrize('make', FACTORIES.values(), ids=FACTORIES)
ABILITIES = {
    UniformQuantizer: {
        LearnsStep,
        LearnsEnds,
        SoftRounding,
        HasRange,
        Refines,
        Rescales,
    },
    LLAQuantizer: {LearnsTable, SoftRounding, FitsTensor},
    SubsetQuantizer: {LearnsStep, SoftRounding, FitsTensor},
    LogQuantizer: {SoftRounding},
    AdaLogQuantizer: {SoftRounding, FitsPoints, Refines},
    TwinUniformQuantizer: {SoftRounding, FitsPoints},
    PowerOfTwoQuantizer: {FitsPoints},
    InstanceGroupQuantizer: {PerInstance},
    ChannelGroups: set(),
    CodebookQuantizer: {SoftRounding, FitsPoints, FitsTensor, PlacesValues},
}


@pytest.mark.parametrize('kind', ABILITIES)
def test_abilities(kind):
    every = set().union(*ABILITIES.values())
    found = {a for a in every if isinstance(kind(4), a)}
    assert found == ABILITIES[kind]
    # scales that depend on each other, or on the tensor, cannot be
    searchable = kind not in (PowerOfTwoQuantizer, InstanceGroupQuantizer)
    assert isinstance(kind(4), Searchable) == searchable


@each
def test_fits_or_takes_a_range(make):
    q, x = make(4), torch.randn(2, 6, 4, 4)
    assert not q.initialized
    if isinstance(q, FitsTensor):
        assert q.fit(x) is True
    elif isinstance(q, PerInstance):
        ends = torch.full((q.num_groups,), 3.0)
        q.set_range(-ends, ends)
    else:
        rows = q.granularity.rows(x)
        q.set_range(rows.amin(1), rows.amax(1))
    assert q.initialized and q(x).isfinite().all()


@each
def test_learned_and_fixed_again(make):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 4)
    # else the largest value is as far from one code as from the next, and
    # the last bit of the scale decides
    q = fit(make(4), x, 0.9)
    y = q(x)
    for ability, learn in {
        LearnsStep: 'learn_step',
        LearnsEnds: 'learn_ends',
        LearnsTable: 'learn_table',
    }.items():
        if not isinstance(q, ability):
            continue
        assert not list(q.parameters())
        getattr(q, learn)()
        learned = list(q.parameters())
        torch.testing.assert_close(q(x), y)
        (q(x) * torch.arange(16.0).view(4, 4)).sum().backward()
        grads = [p.grad for p in learned if p.grad is not None]
        assert any(g.any() for g in grads)
        getattr(q, learn)(False)
        assert not list(q.parameters())
        torch.testing.assert_close(q(x), y)


def test_table_names_what_it_learns():
    q = LLAQuantizer(3)
    q.fit(torch.randn(4, 9))
    found = q.learn_table()
    assert list(found) == ['k', 'a']
    assert found['k'] is q.log_k and found['a'] is q.a
    assert q.learn_table(False) == {}


@each
def test_soft_rounding_brackets(make):
    q = fit(make(4), torch.randn(2, 6, 4, 4))
    if not isinstance(q, SoftRounding):
        return
    x = q(torch.randn(2, 6, 4, 4) / 2)
    x = x + torch.randn_like(x) * 1e-3
    lower = q.lower_codes(x)
    low, high = q.values(lower), q.values(lower + 1)
    assert (low < high).all()
    codes = q.encode(x)
    outside = (x < low) | (x > high)
    nearer = torch.where(outside, codes, lower)
    assert ((nearer == codes) | (nearer + 1 == codes)).all()
    assert torch.equal(q.values(codes).detach(), q(x).detach())


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', [2, 3, 8])
def test_range_sets_the_same_grid_again(symmetric, bits):
    q = UniformQuantizer(bits, symmetric, per_level=True)
    q.set_range(-torch.rand(3, 1), torch.rand(3, 1))
    low, high = q.range()
    other = UniformQuantizer(bits, symmetric, per_level=True)
    other.set_range(low, high)
    torch.testing.assert_close(other.scale, q.scale)
    assert torch.equal(other.zero_point, q.zero_point)


def test_range_by_hand():
    q = UniformQuantizer(2)
    q.set_range(torch.tensor([-1.2]), torch.tensor([1.8]))
    assert q.zero_point.item() == 1
    low, high = q.range()  # the range moved by a fraction of a step
    torch.testing.assert_close(low, torch.tensor([-1.0]))
    torch.testing.assert_close(high, torch.tensor([2.0]))
    q = UniformQuantizer(2, symmetric=True)
    q.set_range(torch.tensor([-1.0]), torch.tensor([3.0]))
    assert [t.item() for t in q.range()] == [-3, 3]


@each
def test_adopted_candidate_is_what_was_tried(make):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 4)
    for bits in {2, 4, 8} & {*bits_of(make)}:
        q = make(bits)
        if not isinstance(q, Searchable):
            return
        rows = q.granularity.rows(x)
        fractions = torch.tensor([1.0, 0.8, 0.5])
        found = q.candidates(rows.amin(1), rows.amax(1), fractions)
        assert {t.shape for t in found} == {(len(rows), 3)}
        if isinstance(found, Ranges):
            assert torch.equal(found.high[:, 1], rows.amax(1) * 0.8)
        tried = q.trial(rows, found)
        assert tried.shape == (len(rows), 3, rows.shape[1])
        index = torch.arange(len(rows)) % 3
        q.adopt(found, index)
        assert bool(q.initialized)
        want = tried[torch.arange(len(rows)), index]
        assert torch.equal(q.granularity.rows(q.eval()(x)), want)


def test_adopts_for_levels():
    q = UniformQuantizer(2, per_level=True)
    found = Ranges(torch.zeros(3, 2), torch.tensor([[3.0, 6.0]]).repeat(3, 1))
    q.adopt(found, torch.tensor([[0], [1], [0]]))
    assert q.scale.tolist() == [[1], [2], [1]]


def softmax_rows(rows=1):
    """Points of a softmax's output, and their shares."""
    x = torch.randn(rows, 64, 32, generator=seeded(0)).mul(3).softmax(-1)
    x = x.flatten(1).sort(1).values
    return x, torch.full_like(x, 1 / x.shape[1])


def error(q, x, shares, p):
    off = (q.granularity.rows(q(x)) - x).abs() ** p
    return (off * shares).sum()


@each
@pytest.mark.parametrize('p', [1.0, 2.4])
def test_fitted_points_err_no_more_than_the_range(make, p):
    q = make(4)
    if not isinstance(q, FitsPoints):
        return
    rows = q.granularity.num_rows((2, 6, 4, 4))
    x, shares = softmax_rows(rows)
    q.set_range(x.amin(1), x.amax(1))
    q.granularity = Granularity('channel', 0) if rows > 1 else q.granularity
    before = error(q, x, shares, p)
    q.fit_points(x, shares, p)
    assert error(q, x, shares, p) <= before
    # points that stand for nothing do not count
    table = q(x)
    more = torch.cat([x, torch.full_like(x, 7.0)], 1)
    q.fit_points(more, torch.cat([shares, torch.zeros_like(shares)], 1), p)
    assert torch.equal(q(x), table)


@each
def test_fitted_points_of_a_level(make):
    q = make(4)
    if not isinstance(q, FitsPoints):
        return
    with pytest.raises(CalibrationError, match='calibrate'):
        q.fit_points(*softmax_rows())
    q.per_level, rows = True, q.granularity.num_rows((2, 6, 4, 4))
    x, shares = softmax_rows(rows)
    q.set_range(torch.zeros(3, rows), torch.ones(3, rows))
    y = torch.rand(2, 6, 4, 4, generator=seeded(1)) - 0.2
    before = [q(y, level) for level in range(3)]
    q.fit_points(x / 3, shares, level=1)
    after = [q(y, level) for level in range(3)]
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    alone = make(4)
    alone.set_range(torch.zeros(rows), torch.ones(rows))
    assert torch.equal(alone(y), after[0])
    alone.fit_points(x / 3, shares)
    assert torch.equal(alone(y), after[1])
    with pytest.raises(IndexError, match='level 3'):
        q.fit_points(x, shares, level=3)


@each
def test_refined_candidates_keep_the_best(make):
    q = make(4)
    if not isinstance(q, Refines):
        return
    x = torch.rand(3, 50, generator=seeded(0))
    found = q.coarse(x, 64)
    assert {t.shape for t in found} == {(3, found[0].shape[1])}
    assert 32 <= found[0].shape[1] <= 64
    kept = type(found)(*(t[:, :5] for t in found))
    for each in (2, 3, 8):
        more = q.refined(kept, each)
        assert type(more) is type(found)
        assert {t.shape for t in more} == {(3, 5 * each)}
        values = q.trial(x, more).unflatten(1, (5, each))
        same = (values == q.trial(x, kept)[:, :, None]).all(-1)
        assert bool(same.any(-1).all())
