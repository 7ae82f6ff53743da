# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Modules that are units, without a graph."""

import torch

from mmdet_ptq.calibration.units import UnitView


def plain_view(module):
    view = object.__new__(UnitView)
    view.name, view.module, view.layers = 'unit', module, {}
    view.relu = view.maps = False
    return view


class Overwriting(torch.nn.Module):
    """What follows writes over the input and the output of the unit."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Linear(4, 4)
        self.unit = torch.nn.Linear(4, 4)

    def forward(self, x):
        x = self.before(x)
        y = self.unit(x)
        x.zero_()
        return y.mul_(2) + x
