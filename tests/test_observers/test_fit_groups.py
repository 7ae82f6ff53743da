# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Algorithm 1 on points whose answer is known."""

import itertools

import torch
from seeded import seeded

from mmdet_ptq.observers import fit_groups
from mmdet_ptq.quantizers import nearest


def loss(points, centres):
    return float(nearest(points.double(), centres)[0].sum())


def test_three_clusters_by_hand():
    points = torch.tensor(
        [[-1, 1], [-1.2, 1], [-3, 5], [-3, 5.4], [-3, 5.2], [0, 20], [0, 22]]
    )
    means = torch.tensor([[-1.1, 1], [-3, 5.2], [0, 21]]).double()
    torch.testing.assert_close(fit_groups(points, 3, reach=0.0), means)
    extremes = torch.tensor([[-1.2, 1], [-3, 5.4], [0, 22]]).double()
    half = fit_groups(points, 3, reach=0.5)
    torch.testing.assert_close(half, (means + extremes) / 2)
    found = fit_groups(points, 3)
    torch.testing.assert_close(found, extremes)
    # neither their order nor a repetition of all changes anything
    for order in ([6, 2, 4, 0, 1, 5, 3], [3, 1, 0, 6, 5, 4, 2]):
        assert torch.equal(fit_groups(points[order], 3), found)


def test_ends_decide_and_not_widths_alone():
    """All of one width: where they lie tells them apart."""
    points = torch.tensor([[-4.0, 0], [-4.1, -0.1], [0, 4], [0.1, 4.1]])
    points = torch.cat([points, torch.tensor([[-2.0, 2.0]] * 3)])
    found = fit_groups(points, 3)
    want = [[-4.1, 0], [-2, 2], [0, 4.1]]
    assert torch.allclose(
        found[found[:, 1].argsort()], torch.tensor(want).double()
    )


def test_a_lost_outlier_is_found_when_grids_begin_anew():
    """Two wide rows share a grid, and many narrow ones have three."""
    narrow = torch.rand(200, 2, generator=seeded(0)) * torch.tensor([-1, 1])
    wide = [[-300.0, 300.0], [-450.0, 450.0]]
    points = torch.cat([narrow, torch.tensor(wide)])
    without = fit_groups(points, 4, iterations=74, reach=0.0)
    assert without[-1].tolist() == [-375, 375]
    found = fit_groups(points, 4, reach=0.0)
    assert found[-2:].tolist() == wide
    assert loss(points, found) < loss(points, without) / 10


def test_never_worse_than_where_it_began():
    for seed, groups in itertools.product(range(5), (3, 8)):
        points = torch.randn(150, 2, generator=seeded(seed)).cumsum(1)
        points = torch.stack([points.amin(1), points.amax(1)], 1)
        began = fit_groups(points, groups, iterations=1, reach=0.0)
        found = fit_groups(points, groups, reach=0.0)
        assert loss(points, found) <= loss(points, began)


def test_ends_are_extremes_by_hand():
    points = torch.tensor([[-1.0, 2.0], [-3.0, 1.0], [-40.0, 9.0]])
    assert fit_groups(points, 1).tolist() == [[-40, 9]]
    assert fit_groups(points, 2).tolist() == [[-3, 2], [-40, 9]]


def test_fewer_rows_than_groups():
    points = torch.tensor([[-1.0, 2.0], [-3.0, 1.0]])
    found = fit_groups(points, 5)
    assert found.shape == (5, 2)
    assert loss(points, found) == 0
