# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Gradients at the output of a unit."""

from types import SimpleNamespace

import torch
from unit_kit import Overwriting, plain_view

from mmdet_ptq.calibration.gradients import gradients
from mmdet_ptq.calibration.units import frozen


def test_gradient_at_an_output_that_is_written_to():
    net, x = Overwriting(), torch.randn(2, 4)
    with frozen(net):
        found = dict(
            gradients(
                SimpleNamespace(mine=[3]),
                plain_view(net.unit),
                lambda j: net(x),
                lambda j, y: y.square().sum(),
            )
        )
        with torch.no_grad():
            y = net.unit(net.before(x))
    torch.testing.assert_close(found, {3: [8 * y]})


def test_gradient_where_the_loss_depends_on_nothing():
    unit, x = torch.nn.Linear(4, 4), torch.randn(2, 4)

    def loss(j, outputs):
        return outputs[j].sum() if j < 2 else torch.zeros(())

    with frozen(unit):
        found = dict(
            gradients(
                SimpleNamespace(mine=[0, 1, 2]),
                plain_view(unit),
                lambda j: (unit(x), unit(2 * x)),
                loss,
            )
        )
    one, zero = torch.ones(2, 4), torch.zeros(2, 4)
    expected = {0: [one, zero], 1: [zero, one], 2: [zero, zero]}
    torch.testing.assert_close(found, expected)
