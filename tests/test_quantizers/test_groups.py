# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid that costs a row least."""

import pytest
import torch
from seeded import seeded

from mmdet_ptq.quantizers import Granularity, grid_costs
from mmdet_ptq.quantizers.groups import assign_groups, assign_groups_op

LOW, HIGH = torch.tensor([0.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 3.0])


def cost(least, most, low, high, room):
    """Of one row and one grid."""
    if room is None:
        return (most - high) ** 2 + (least - low) ** 2
    low, high = min(low, 0), max(high, 0)
    over, under = max(most - high, 0), max(low - least, 0)
    return room * (high - low) ** 2 + over**2 + under**2


def test_distances_by_hand():
    points = torch.tensor([[0.0, 1.0], [-0.5, 1.0], [-1.0, 2.0], [-9.0, 9.0]])
    grids = torch.stack([LOW, HIGH], 1).double()
    found = grid_costs(points.double(), grids, None)
    assert found.argmin(1).tolist() == [0, 0, 1, 2]  # the first of several
    assert found.amin(1).tolist() == [0, 0.25, 1, 64 + 36]


def test_costs_by_hand():
    """Wide grids cost room; what they do not hold costs its square."""
    points = torch.tensor([[0.0, 1.0], [-1.5, 1.0], [0.5, 4.0]]).double()
    grids = torch.tensor([[0.0, 1.0], [-1.0, 1.0], [1.0, 3.0]]).double()
    want = [
        [0.1, 0.4, 0.9],  # the last holds 0 too: it is 3 wide
        [0.1 + 2.25, 0.4 + 0.25, 0.9 + 2.25],
        [0.1 + 9, 0.4 + 9, 0.9 + 1],
    ]
    torch.testing.assert_close(
        grid_costs(points, grids, 0.1), torch.tensor(want).double()
    )


@pytest.mark.parametrize('room', [None, 0.01, 1.0])
def test_rows_of_any_layout(room):
    x = torch.randn(2, 6, 3, 4, generator=seeded(0)) * 2
    for kind, axis, rest in (('channel', 1, (0, 2, 3)), ('row', -1, (3,))):
        grain = Granularity(kind, axis)
        ends = [t.reshape(-1).tolist() for t in (x.amin(rest), x.amax(rest))]
        grids = list(zip(LOW.tolist(), HIGH.tolist(), strict=True))
        want = [
            min(range(3), key=lambda i, e=e: cost(*e, *grids[i], room))
            for e in zip(*ends, strict=True)
        ]
        assert assign_groups(x, LOW, HIGH, grain, room).tolist() == want
        swapped = x.transpose(2, 3).contiguous().transpose(2, 3)
        assert assign_groups(swapped, LOW, HIGH, grain, room).tolist() == want
    assert len(set(want)) > 1


def test_nothing_is_in_the_first():
    grain = Granularity('channel', 1)
    x = torch.empty(0, 6, 2, 2)
    assert assign_groups(x, LOW, HIGH, grain, 0.1).tolist() == [0] * 6


def test_the_operation_keeps_the_rules_of_torch():
    x = torch.randn(2, 6, 3, 4)
    for grain in (('channel', 1, None, False), ('row', -1, None, False)):
        for room in (None, 0.1):
            args = x, LOW, HIGH, *grain, room
            torch.library.opcheck(assign_groups_op, args)
