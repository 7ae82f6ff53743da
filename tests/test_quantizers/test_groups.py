# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The nearest of a few grids."""

import torch
from seeded import seeded

from mmdet_ptq.quantizers import Granularity, nearest
from mmdet_ptq.quantizers.groups import assign_groups, assign_groups_op

LOW, HIGH = torch.tensor([0.0, -1.0, -1.0]), torch.tensor([1.0, 1.0, 3.0])


def test_the_first_of_several():
    points = torch.tensor([[0.0, 1.0], [-0.5, 1.0], [-1.0, 2.0], [-9.0, 9.0]])
    centres = torch.stack([LOW, HIGH], 1).double()
    apart, group = nearest(points.double(), centres)
    assert group.tolist() == [0, 0, 1, 2]
    assert apart.tolist() == [0, 0.25, 1, 64 + 36]


def test_rows_of_any_layout():
    x = torch.randn(2, 6, 3, 4, generator=seeded(0)) * 2
    for kind, axis, rest in (('channel', 1, (0, 2, 3)), ('row', -1, (3,))):
        grain = Granularity(kind, axis)
        ends = [t.reshape(-1) for t in (x.amin(rest), x.amax(rest))]
        want = [
            min(
                range(3),
                key=lambda i, a=a, b=b: (
                    (b - HIGH[i].item()) ** 2 + (a - LOW[i].item()) ** 2
                ),
            )
            for a, b in zip(*(e.tolist() for e in ends), strict=True)
        ]
        assert assign_groups(x, LOW, HIGH, grain).tolist() == want
        swapped = x.transpose(2, 3).contiguous().transpose(2, 3)
        assert assign_groups(swapped, LOW, HIGH, grain).tolist() == want
    assert set(want) == {0, 1, 2}


def test_nothing_is_in_the_first():
    grain = Granularity('channel', 1)
    x = torch.empty(0, 6, 2, 2)
    assert assign_groups(x, LOW, HIGH, grain).tolist() == [0] * 6


def test_the_operation_keeps_the_rules_of_torch():
    x = torch.randn(2, 6, 3, 4)
    for grain in (('channel', 1, None, False), ('row', -1, None, False)):
        torch.library.opcheck(assign_groups_op, (x, LOW, HIGH, *grain))
