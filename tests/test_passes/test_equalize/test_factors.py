# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Factors in closed form, against numbers worked by hand."""

import pytest
import torch
from torch import nn

from mmdet_ptq.passes.equalize.factors import (
    LIMIT,
    by_weights,
    closed_form,
    spread,
)
from mmdet_ptq.structures import Scaling


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    'alpha, expected',
    [
        # sqrt(8 / 2), sqrt(1 / 4) and sqrt(2 / 2): their product is 1
        (0.5, (2.0, 0.5, 1.0)),
        # 8, 1 and 2 over their geometric mean of 16^(1/3)
        (1.0, (8 / 16 ** (1 / 3), 16 ** (-1 / 3), 2 / 16 ** (1 / 3))),
        # 1/2, 1/4 and 1/2 likewise
        (0.0, (16 ** (1 / 3) / 2, 16 ** (1 / 3) / 4, 16 ** (1 / 3) / 2)),
    ],
)
def test_closed_form(alpha, expected):
    found = closed_form(tensor(8, 1, 2), tensor(2, 4, 2), alpha)
    torch.testing.assert_close(found, tensor(*expected))


def test_ranges_are_even_afterwards():
    one, other = torch.rand(2, 9).double() + 0.01
    s = closed_form(one, other, 0.5)
    # equation 9 of the paper: both sides have the same share of all
    torch.testing.assert_close(
        one / s / (one / s).max(), other * s / (other * s).max()
    )


def test_dead_channels_stay():
    found = closed_form(tensor(0, 8, 2), tensor(1, 2, 0), 0.5)
    assert found.tolist() == [1, 1, 1]
    assert closed_form(tensor(0, 0), tensor(0, 1), 0.5).tolist() == [1, 1]


def test_factors_are_bounded():
    found = closed_form(tensor(1e9, 1e-9), tensor(1, 1), 1.0)
    torch.testing.assert_close(found, tensor(LIMIT, 1 / LIMIT))


def test_spread():
    index = torch.tensor([[1, -1], [0, 2]])
    found = spread(tensor(2, 8), index)
    assert found.tolist() == [[2, 0.5], [1, 8]]


@torch.no_grad()
def test_weights_of_all_makers_and_readers():
    layers = {n: nn.Linear(2, 2) for n in 'abc'}
    layers['a'].weight.copy_(torch.tensor([[1.0, -3], [2, 0]]))
    layers['b'].weight.copy_(torch.tensor([[0.5, 0], [-5, 1]]))
    layers['c'].weight.copy_(torch.tensor([[4.0, -1], [-2, 0.5]]))
    order = torch.tensor([2, 1])
    scaling = Scaling(
        'layer',
        2,
        # the second factor is of the first channel of b
        dict(a=torch.tensor([1, 2]), b=order),
        dict(c=order),
        {},
    )
    made, read = by_weights(scaling, layers)
    # rows of a: 3, 2; rows of b: 0.5 of the second factor, 5 of the first
    assert made.tolist() == [5, 2]
    # columns of c: 4 of the second factor, 1 of the first
    assert read.tolist() == [1, 4]
