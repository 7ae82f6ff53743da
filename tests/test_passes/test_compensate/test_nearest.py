# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a weight, column by column."""

import pytest
import torch
from compensate_kit import GRIDS, LAYERS, twin
from torch import nn

from mmdet_ptq.calibration import weight_matrix
from mmdet_ptq.layers import convert
from mmdet_ptq.passes.compensate.moments import Product
from mmdet_ptq.passes.compensate.nearest import Nearest
from mmdet_ptq.quantizers import UniformQuantizer


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('kind', LAYERS)
def test_every_column_by_itself_is_what_the_quantizer_gives(kind, grid):
    layer = twin(kind, grid)
    product = Product(layer, 4)
    weight = weight_matrix(layer, layer.weight.detach())
    parts = product.parted(weight)
    order = torch.rand(len(parts), parts.shape[2]).argsort(1)
    across = order[:, None].expand_as(parts)
    found = Nearest(layer, product, order).all(parts.gather(2, across))
    found = found.gather(2, order.argsort(1)[:, None].expand_as(parts))
    expected = weight_matrix(layer, layer.weight_quantizer(layer.weight))
    assert torch.equal(product.joined(found), expected.detach())


def small(granularity, steps):
    """Two output channels of three columns, at steps of 1 and 2."""
    model = nn.Sequential(nn.Linear(3, 2))
    convert(model)
    layer = model[0]
    q = UniformQuantizer(
        4, True, granularity=granularity, axis=0, role='weight'
    )
    q.set_range(-7.5 * torch.tensor(steps), 7.5 * torch.tensor(steps))
    layer.attach(weight=q)
    order = torch.arange(3)[None]
    return layer, Nearest(layer, Product(layer, 99), order)


def test_steps_that_fit_the_codes_by_hand():
    """With moments of one, the slope of the target over the values."""
    layer, nearest = small('channel', [1.0, 2.0])
    found = torch.tensor([[[1.0, 2, 3], [2, -4, 0]]]).double()
    target = torch.tensor([[[1.5, 2, 3], [1, -2, 5]]]).double()
    again = nearest.refit(found, target, torch.eye(3).double()[None])
    slopes = torch.tensor([14.5 / 14, 10 / 20]).double()
    torch.testing.assert_close(nearest.steps, slopes)
    torch.testing.assert_close(again[0], found[0] * slopes[:, None])
    # the nearest values are those of the new grid
    torch.testing.assert_close(nearest.all(again), again)
    settled = nearest.settle(again)
    torch.testing.assert_close(settled, again, rtol=1e-6, atol=1e-6)
    q = layer.weight_quantizer
    torch.testing.assert_close(
        q.scale.double(), torch.tensor([1.0, 2.0]).double() * slopes
    )
    assert torch.equal(q(settled[0].float()), settled[0].float())


def test_output_channels_that_share_a_step():
    """Their sums decide, and moments weigh columns."""
    _, nearest = small('tensor', [1.0])
    found = torch.tensor([[[1.0, 2, 3], [2, -4, 0]]]).double()
    target = torch.tensor([[[1.5, 2, 3], [1, -2, 5]]]).double()
    moments = torch.diag(torch.tensor([2.0, 1, 1])).double()[None]
    nearest.refit(found, target, moments)
    expected = (3.0 + 4 + 9 + 4 + 8) / (2.0 + 4 + 9 + 8 + 16)
    torch.testing.assert_close(
        nearest.steps, torch.tensor([expected]).double()
    )


def test_a_row_of_zeros_keeps_its_steps():
    _, nearest = small('channel', [1.0, 2.0])
    zero = torch.zeros(1, 2, 3).double()
    nearest.refit(zero, zero + 1, torch.eye(3).double()[None])
    assert nearest.steps.tolist() == [1, 1]
