# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Values of least error."""

from itertools import combinations

import pytest
import torch
from seeded import seeded

from mmdet_ptq.errors import CalibrationError
from mmdet_ptq.quantizers import CodebookQuantizer, UniformQuantizer


def normal(count=100_001):
    """A normal density by its quantiles."""
    at = torch.linspace(0, 1, count + 2, dtype=torch.float64)[1:-1]
    return torch.special.ndtri(at).float()[None]


def weights(bits, **kwargs):
    return CodebookQuantizer(bits, 'channel', role='weight', **kwargs)


@pytest.mark.parametrize(
    ('bits', 'upper', 'error'),
    [
        # Max (1960), Table I
        (2, [0.4528, 1.510], 0.1175),
        (3, [0.2451, 0.7560, 1.344, 2.152], 0.03454),
    ],
)
def test_a_normal_density_has_the_published_values(bits, upper, error):
    x, q = normal(), weights(bits)
    q.fit(x)
    upper = torch.tensor(upper)
    want = torch.cat([-upper.flip(0), upper])[None]
    torch.testing.assert_close(q.encoding().table, want, atol=3e-2, rtol=0)
    found = (x - q(x)).square().mean()
    assert float(found) == pytest.approx(error, rel=0.01)


def least(x, count, fixed=()):
    """The least squared error of all ways to part a sorted tensor."""
    x = x.sort().values.double()
    best = torch.inf
    for ends in combinations(range(1, len(x)), count - 1):
        parts = torch.tensor_split(x, ends)
        found = [
            min(
                (part - value).square().sum()
                for value in (part.mean(), *fixed)
            )
            for part in parts
        ]
        best = min(best, float(sum(found)))
    return best


@pytest.mark.parametrize('seed', range(4))
def test_near_the_best_of_all_partings(seed):
    x, q = torch.randn(1, 12, generator=seeded(seed)), weights(2)
    q.fit(x)
    found = (x - q(x)).double().square().sum()
    # turns about may end at an optimum that is not the least
    assert least(x[0], 4) <= float(found) * (1 + 1e-6)
    assert float(found) <= 1.5 * least(x[0], 4)


@pytest.mark.parametrize('p', [1.0, 2.0, 2.4])
@pytest.mark.parametrize('bits', [2, 4, 6])
def test_never_worse_than_equal_steps(bits, p):
    x = torch.randn(1, 5000, generator=seeded(1)).relu() ** 2
    q = CodebookQuantizer(bits)
    low, high = x.new_zeros(1), x.amax()[None] * 0.6
    q.set_range(low, high)
    equal = UniformQuantizer(bits)
    equal.set_range(low, high)
    torch.testing.assert_close(q(x), equal(x))
    before = (x - q(x)).abs().pow(p).mean()
    q.fit_points(x, torch.ones_like(x), p)
    after = (x - q(x)).abs().pow(p).mean()
    assert after < 0.9 * before


def test_shares_count_as_often_as_they_say():
    x = torch.tensor([[0.0, 1.0, 2.0, 5.0, 6.0, 9.0]])
    shares = torch.tensor([[1.0, 3.0, 2.0, 1.0, 4.0, 2.0]])
    often = x.repeat_interleave(shares[0].long(), 1)
    found = []
    for points, parts in ((x, shares), (often, torch.ones_like(often))):
        q = weights(2)
        q.set_range(torch.zeros(1), torch.full((1,), 9.0))
        q.fit_points(points, parts)
        found.append(q.encoding().table)
    # 0, 1, 1, 1; 2, 2; 5, 6, 6, 6, 6; 9, 9
    want = torch.tensor([[0.75, 2.0, 5.8, 9.0]])
    torch.testing.assert_close(found[0], want)
    torch.testing.assert_close(found[1], want)


def test_zero_is_a_value_of_activations():
    x = torch.rand(1, 1000, generator=seeded(2)) + 0.5
    q = CodebookQuantizer(3)
    q.set_range(torch.zeros(1), torch.full((1,), 1.5))
    q.fit_points(x, torch.ones_like(x))
    assert float(q(torch.zeros(1))) == 0
    assert float((x - q(x)).abs().max()) < 0.1


def test_levels_apart():
    q = CodebookQuantizer(2, per_level=True)
    q.set_range(torch.zeros(2, 1), torch.tensor([[3.0], [6.0]]))
    x = torch.tensor([[0.0, 1.0, 4.0, 6.0]])
    q.fit_points(x, torch.ones_like(x), level=1)
    torch.testing.assert_close(q(x, level=1), x)
    want = torch.tensor([[0.0, 1.0, 3.0, 3.0]])
    torch.testing.assert_close(q(x, level=0), want)


def test_values_are_put_anywhere():
    q = weights(2)
    q.fit(torch.randn(2, 50, generator=seeded(3)))
    values = torch.tensor([[3.0, -1.0, 0.5, 0.0], [1.0, 2.0, 3.0, 9.0]])
    q.place(values)
    found = q.encoding()
    torch.testing.assert_close(found.table, values.sort(-1).values)
    torch.testing.assert_close(
        found.bounds[0], torch.tensor([-0.5, 0.25, 1.75])
    )
    torch.testing.assert_close(q.low, torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(q.high, torch.tensor([3.0, 9.0]))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        (torch.zeros(3, 4), r'\(2, 4\).*got \(3, 4\)'),
        (torch.zeros(2, 8), r'\(2, 4\).*got \(2, 8\)'),
        (torch.tensor([[0.0, 1, 2, torch.nan]] * 2), 'NaN or Inf'),
        (torch.full((2, 4), 1e300, dtype=torch.float64), 'NaN or Inf'),
    ],
    ids=['rows', 'values', 'nan', 'float32'],
)
def test_what_are_no_values_is_refused(values, message):
    q = weights(2)
    q.fit(torch.randn(2, 50, generator=seeded(3)))
    before = q.table.clone()
    with pytest.raises(ValueError, match=message):
        q.place(values)
    assert torch.equal(q.table, before)


def test_values_are_placed_in_a_range():
    with pytest.raises(CalibrationError, match='before it had a range'):
        weights(2).place(torch.zeros(2, 4))


def test_without_points_it_keeps_equal_steps():
    q = CodebookQuantizer(2)
    q.set_range(torch.zeros(1), torch.full((1,), 3.0))
    q.fit_points(torch.zeros(1, 0), torch.zeros(1, 0))
    want = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    torch.testing.assert_close(q.encoding().table, want)


def test_every_value_is_stored():
    assert weights(3).parameter_bits(5) == 5 * 8 * 32


def test_a_file_holds_values_and_no_bounds():
    x, q = torch.randn(3, 50, generator=seeded(4)), weights(3)
    q.fit(x)
    state = q.state_dict()
    assert 'bounds_of_rows' not in state
    other = weights(3)
    other.load_state_dict(state)
    assert torch.equal(other(x), q(x))
    assert torch.equal(other.bounds_of_rows, q.bounds_of_rows)
