# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import pytest
import torch

from mmdet_ptq.quantizers import Granularity

CASES = [
    (Granularity(), (2, 6, 3), 1),
    (Granularity(), (), 1),
    (Granularity('channel', 1), (2, 6, 3), 6),
    (Granularity('channel', -1), (2, 6, 3), 3),
    (Granularity('channel', 0), (5,), 5),
    (Granularity('channel', 1), (0, 6, 3), 6),
    (Granularity('group', 1, 2), (2, 6, 3), 3),
    (Granularity('group', 0, 4, within=True), (3, 2, 2, 2), 6),
    (Granularity('group', 1, 3, within=True), (3, 2, 2), 4),
    (Granularity('row', -1), (2, 6, 3), 12),
    (Granularity('row', 1), (2, 6, 3), 6),
    (Granularity('row', 0), (5,), 1),
]


@pytest.mark.parametrize('grain, shape, rows', CASES)
def test_rows_and_expand_agree(grain, shape, rows):
    x = torch.randn(shape)
    assert grain.num_rows(shape) == rows
    got = grain.rows(x)
    assert got.shape == (rows, x.numel() // rows)
    assert torch.equal(grain.unrows(got, shape), x)
    param = torch.arange(1.0, rows + 1)
    scaled = x * grain.expand(param, shape)
    assert torch.equal(grain.rows(scaled), got * param[:, None])


def test_group_rows_by_hand():
    x = torch.arange(8).view(1, 4, 2)
    assert Granularity('group', 1, 2).rows(x).tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    w = torch.arange(8).view(2, 4)
    assert Granularity('group', 0, 2, within=True).rows(w).tolist() == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]


def test_rows_is_a_view_where_it_can_be():
    x = torch.randn(4, 5, 6)
    assert Granularity('channel', 0).rows(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    'args, message',
    [
        (('rows',), 'tensor, channel, group'),
        (('channel', 1.5), 'axis must be an int'),
        (('group', 1), 'needs a group_size'),
        (('group', 1, 0), 'needs a group_size'),
        (('channel', 1, 4), 'only for'),
    ],
)
def test_wrong_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        Granularity(*args)


def test_wrong_shapes():
    with pytest.raises(ValueError, match='no axis 1'):
        Granularity('channel', 1).rows(torch.randn(3))
    with pytest.raises(ValueError, match='does not divide the 6 channels'):
        Granularity('group', 1, 4).rows(torch.randn(2, 6))
    with pytest.raises(ValueError, match='does not divide the 9 weights'):
        Granularity('group', 0, 4, True).rows(torch.randn(2, 1, 3, 3))
    with pytest.raises(ValueError, match='do not fit'):
        Granularity('channel', 1).expand(torch.ones(5), (2, 6))
    with pytest.raises(ValueError, match='whole tensor'):
        Granularity().expand(torch.ones(5), (2, 6))
