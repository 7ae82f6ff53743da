# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Algorithm 1 on points whose answer is known."""

import itertools

import pytest
import torch
from seeded import seeded

from mmdet_ptq.observers import fit_groups
from mmdet_ptq.quantizers import grid_costs


def loss(points, grids, room=None):
    return float(grid_costs(points.double(), grids, room).amin(1).sum())


def test_three_clusters_by_hand():
    points = torch.tensor(
        [[-1, 1], [-1.2, 1], [-3, 5], [-3, 5.4], [-3, 5.2], [0, 20], [0, 22]]
    )
    means = torch.tensor([[-1.1, 1], [-3, 5.2], [0, 21]]).double()
    found = fit_groups(points, 3)
    torch.testing.assert_close(found, means)
    # neither their order nor a repetition of all changes anything
    for order in ([6, 2, 4, 0, 1, 5, 3], [3, 1, 0, 6, 5, 4, 2]):
        assert torch.equal(fit_groups(points[order], 3), found)


def test_ends_decide_and_not_widths_alone():
    """All of one width: where they lie tells them apart."""
    points = torch.tensor([[-4.0, 0], [-4.1, -0.1], [0, 4], [0.1, 4.1]])
    points = torch.cat([points, torch.tensor([[-2.0, 2.0]] * 3)])
    found = fit_groups(points, 3)
    want = [[-4.05, -0.05], [-2, 2], [0.05, 4.05]]
    assert torch.allclose(
        found[found[:, 1].argsort()], torch.tensor(want).double()
    )


def test_a_lost_outlier_is_found_when_grids_begin_anew():
    """Two wide rows share a grid, and many narrow ones have three."""
    narrow = torch.rand(200, 2, generator=seeded(0)) * torch.tensor([-1, 1])
    wide = [[-300.0, 300.0], [-450.0, 450.0]]
    points = torch.cat([narrow, torch.tensor(wide)])
    without = fit_groups(points, 4, iterations=74)
    assert without[-1].tolist() == [-375, 375]
    found = fit_groups(points, 4)
    assert found[-2:].tolist() == wide
    assert loss(points, found) < loss(points, without) / 10


@pytest.mark.parametrize('room', [None, 0.1, 1e-4])
def test_never_worse_than_where_it_began(room):
    for seed, groups in itertools.product(range(5), (3, 8)):
        points = torch.randn(150, 2, generator=seeded(seed)).cumsum(1)
        points = torch.stack([points.amin(1), points.amax(1)], 1)
        began = fit_groups(points, groups, iterations=1, room=room)
        found = fit_groups(points, groups, room=room)
        assert loss(points, found, room) <= loss(points, began, room)


def test_ends_that_cost_least_by_hand():
    """``room n w = sum of what is clipped``, at either end.

    With u = 4 the two upper rows lack 1 and 5, and 3 rows of 0.5 * 4 make 6.
    """
    points = torch.tensor([[0.0, 1.0], [0.0, 5.0], [0.0, 9.0]])
    found = fit_groups(points, 1, room=0.5)
    assert found[0].tolist() == pytest.approx([0, 4])


@pytest.mark.parametrize('room', [1.0, 0.1, 1e-3])
def test_ends_that_cost_least_by_search(room):
    points = torch.randn(40, 2, generator=seeded(3)).double().exp()
    points[:, 0] *= -1
    found = fit_groups(points, 1, room=room)
    best = loss(points, found, room)
    for end, by in itertools.product((0, 1), (0.99, 1.01)):
        other = found.clone()
        other[0, end] *= by
        assert loss(points, other, room) > best


def test_ends_hold_zero_and_all_rows_if_room_is_free():
    points = torch.tensor([[2.0, 3.0], [4.0, 9.0], [-40.0, -9.0]])
    for some, want in ((points, [-40, 9]), (points[:2], [0, 9])):
        found = fit_groups(some, 1, room=1e-9)
        assert found[0].tolist() == pytest.approx(want, rel=1e-6)


def test_the_last_step_is_of_all_rows():
    """Rows that are left out before then have their ends all the same."""
    points = torch.rand(20000, 2, generator=seeded(0)).double()
    points[:, 0] *= -1
    # as wide as others, and so in no place of its own
    points[777] = torch.tensor([-0.1, 1.5])
    found = fit_groups(points, 1, room=1e-9)
    assert float(found[0, 1]) == pytest.approx(1.5, rel=1e-4)


def test_fewer_rows_than_groups():
    points = torch.tensor([[-1.0, 2.0], [-3.0, 1.0]])
    found = fit_groups(points, 5)
    assert found.shape == (5, 2)
    assert loss(points, found) == 0
