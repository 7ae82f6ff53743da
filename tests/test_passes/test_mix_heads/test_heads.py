# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where channels of heads are made and read."""

import pytest
import torch
from torch import nn

from mmdet_ptq.passes.mix_heads.heads import Side, heads_of
from mmdet_ptq.structures import Scaling

IDS = torch.tensor([[1, 2], [3, 4]])


def values(**kwargs):
    """Values of two heads of two channels, made in another order."""
    given = dict(
        kind='pv',
        count=4,
        outputs=dict(v=torch.tensor([0, 3, 1, 2, 4])),
        inputs=dict(out=torch.tensor([1, 2, 3, 4])),
        ports={('pv', 'b'): IDS.view(1, 2, 1, 2)},
    )
    return Scaling(**dict(given, **kwargs))


def scores(**kwargs):
    given = dict(
        kind='qk',
        count=4,
        outputs=dict(
            q=torch.tensor([1, 2, 3, 4]),
            p=torch.tensor([4, 3, 2, 1]),
            k=torch.tensor([-1, -2, -3, -4]),
        ),
        inputs={},
        ports={
            ('qk', 'a'): IDS.view(1, 2, 1, 2),
            ('qk', 'b'): -IDS.view(1, 2, 2, 1),
        },
    )
    return Scaling(**dict(given, **kwargs))


LAYERS = dict(
    v=nn.Linear(3, 5),
    out=nn.Linear(4, 3),
    q=nn.Linear(3, 4),
    p=nn.Linear(3, 4),
    k=nn.Linear(3, 4),
    grouped=nn.Conv2d(4, 4, 1, groups=2),
)


def test_values():
    found = heads_of(values(), LAYERS)
    (side,) = found.sides
    assert (side.port, side.axis, side.head) == (('pv', 'b'), -1, -3)
    assert side.makers['v'].tolist() == [[2, 3], [1, 4]]
    assert found.readers['out'].tolist() == [[0, 1], [2, 3]]
    assert found.ends == ('out',) and found.changed == ('v', 'out')


def test_queries_and_keys():
    found = heads_of(scores(), LAYERS)
    a, b = found.sides
    assert (a.axis, a.head, b.axis, b.head) == (-1, -3, -2, -3)
    assert list(a.makers) == ['q', 'p'] and list(b.makers) == ['k']
    assert a.makers['p'].tolist() == [[3, 2], [1, 0]]
    assert b.makers['k'].tolist() == [[0, 1], [2, 3]]
    assert found.ends == ('qk',) and found.changed == ('q', 'p', 'k')


def test_rows_of_operands():
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)  # windows, heads, n, d
    rows = Side(('', 'a'), -1, -3, {}).rows(x)
    assert rows.shape == (3, 8, 5)
    assert rows[1, 5].tolist() == x[1, 1, 1].tolist()
    rows = Side(('', 'b'), -2, -3, {}).rows(x)
    assert rows.shape == (3, 10, 4)
    assert rows[2, 6].tolist() == x[1, 2, :, 1].tolist()
    rows = Side(('', 'b'), -2, -1, {}).rows(x)  # heads behind channels
    assert rows.shape == (5, 6, 4)
    assert rows[3, 4].tolist() == x[1, 1, :, 3].tolist()
    rows = Side(('', 'a'), -1, 0, {}).rows(x)
    assert rows.shape == (1, 24, 5) and torch.equal(rows[0], x.view(24, 5))


@pytest.mark.parametrize(
    ('scaling', 'why'),
    [
        (
            values(
                ports={
                    ('pv', 'b'): IDS.view(1, 2, 1, 2),
                    ('other', 'b'): IDS.view(1, 2, 1, 2),
                }
            ),
            'several products',
        ),
        (scores(ports={('qk', 'a'): IDS.view(1, 2, 1, 2)}), 'several prod'),
        (values(inputs=dict(grouped=IDS.flatten())), 'grouped is no linear'),
        (values(outputs=dict(norm=IDS.flatten())), 'norm is no linear'),
        (
            values(ports={('pv', 'b'): torch.tensor([[[[1, 2, 0, 4]]]])}),
            'some channels of its heads',
        ),
        (
            values(ports={('pv', 'b'): IDS.view(2, 1, 2, 1, 1)}),
            'along several axes',
        ),
        (values(outputs=dict(v=torch.tensor([1, 2, 3, 0]))), 'v makes some'),
        (values(inputs=dict(out=torch.tensor([1, 2, 3]))), 'read elsewhere'),
        (
            scores(
                ports={
                    ('qk', 'a'): IDS.view(1, 2, 1, 2),
                    ('qk', 'b'): -IDS.flip(0).view(1, 2, 2, 1),
                }
            ),
            'other channels',
        ),
    ],
)
def test_what_is_left(scaling, why):
    found = heads_of(scaling, LAYERS)
    assert isinstance(found, str) and why in found
