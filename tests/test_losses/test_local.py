# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Losses on a unit's outputs, by hand."""

import pytest
import torch

from mmdet_ptq.losses import FisherLoss, L2Loss


def test_l2_by_hand():
    maps = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])  # (1, 2, 1, 2)
    rows = torch.tensor([[3.0, 0.0, 0.0]])
    zero = [torch.zeros_like(maps), torch.zeros_like(rows)]
    # three positions in all: 1 + 0, 4 + 1 and 9
    assert float(L2Loss()([maps, rows], zero, [])) == pytest.approx(15 / 3)
    cubes = (1 + 8 + 1 + 27) / 3
    loss = L2Loss(p=3, weight=2)([maps, rows], zero, [])
    assert float(loss) == pytest.approx(2 * cubes)


def test_fisher_weights_by_hand():
    gradient = torch.tensor([[1e-3, -3e-3]])
    mean = float(gradient.double().square().mean())
    whole = FisherLoss().weigh(gradient, mean)
    torch.testing.assert_close(whole, torch.tensor([[0.2, 1.8]]))
    # the scale of the loss is not seen
    tiny = gradient * 1e-18
    torch.testing.assert_close(FisherLoss().weigh(tiny, mean * 1e-36), whole)
    damped = FisherLoss(damping=0.5).weigh(gradient, mean)
    torch.testing.assert_close(damped, torch.tensor([[0.6, 1.4]]))
    brecq = FisherLoss(form='brecq').weigh(gradient, mean)
    torch.testing.assert_close(brecq, torch.tensor([[1.001, 1.003]]) ** 2)
    raw = FisherLoss(form='raw').weigh(gradient, mean)
    torch.testing.assert_close(raw, gradient**2)
    ones = torch.ones(1, 2)
    assert torch.equal(FisherLoss().weigh(torch.zeros(1, 2), mean), ones)
    assert torch.equal(FisherLoss().weigh(gradient, 0.0), ones)
    loss = FisherLoss(weight=3)([2 * ones], [ones], [whole])
    assert float(loss) == pytest.approx(3 * 2.0)


def test_l2_has_a_slope_where_outputs_are_equal():
    """Below 1, the slope of |x|^p at 0 is infinite."""
    for p in (1, 1.5, 2.4):
        x = torch.zeros(2, 3, requires_grad=True)
        L2Loss(p=p)([x], [torch.zeros(2, 3)], []).backward()
        assert torch.equal(x.grad, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r'p must be a number of at least 1'):
        L2Loss(p=0.5)
