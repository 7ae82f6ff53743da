# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Values that are put where the codes want them."""

import torch
from compensate_kit import twin
from seeded import seeded

from mmdet_ptq.passes.compensate.moments import Product
from mmdet_ptq.passes.compensate.placed import Placed


def start(kind='linear', most=99):
    layer = twin(kind, 'codebook')
    product = Product(layer, most)
    groups, _, columns = product.weight.shape
    order = torch.arange(columns).expand(groups, -1)
    return layer, product, Placed(layer, product, order)


def test_values_by_hand():
    """With moments of one, each is the mean of what its codes aim at."""
    layer, product, nearest = start()
    layer.weight_quantizer.place(torch.arange(4.0).expand(6, -1))
    nearest = Placed(layer, product, torch.arange(12)[None])
    found = torch.tensor([1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0]).double()
    aim = torch.tensor([4, 5, 6, 4, 6, 1, 1, 1, 2, 2.5, -1, 2]).double()
    found, aim = (t.expand(1, 6, -1).contiguous() for t in (found, aim))
    again = nearest.refit(found, aim, torch.eye(12).double()[None])
    # sorted: the value of code 1 has passed all others, 3 has no code
    want = torch.tensor([0.5, 1.5, 3, 5]).double()
    torch.testing.assert_close(nearest.steps[0], want, rtol=1e-4, atol=1e-4)
    want = torch.tensor([5.0] * 5 + [1.5] * 5 + [0.5] * 2).double()
    torch.testing.assert_close(again[0, 0], want, rtol=1e-4, atol=1e-4)


def test_least_squares_of_correlated_columns():
    """No other values of these codes err less: the slope is 0."""
    layer, product, nearest = start('grouped')
    columns = product.weight.shape[2]
    rows = torch.randn(2, 40, columns, generator=seeded(0)).double()
    moments = rows.mT @ rows
    aim = product.weight.double()
    found = nearest.all(aim)
    again = nearest.refit(found, aim, moments)
    slope = (aim - again) @ moments
    for group, row in ((0, 0), (0, 2), (1, 1)):
        for value in found[group, row].unique():
            codes = found[group, row] == value
            here = slope[group, row][codes].sum()
            assert abs(float(here)) < 1e-3 * float(moments.diagonal().max())
    settled = nearest.settle(again)
    torch.testing.assert_close(settled, again, rtol=1e-5, atol=1e-6)
    weight = product.joined(settled).view_as(layer.weight).float()
    assert torch.equal(layer.weight_quantizer(weight), weight)
