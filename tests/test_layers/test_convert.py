# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers become twins."""

from torch import nn

from mmdet_ptq.layers import QuantLayer, convert


def test_shared_module_stays_one_object():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.ModuleList([conv, nn.Sequential(conv)])
    convert(model)
    assert model[0] is model[1][0] is conv
    assert type(conv).__name__ == 'QuantConv2d'


def test_unknown_subclass_is_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.ModuleList([Scaled(3, 3, 1), nn.Conv2d(3, 3, 1)])
    convert(model)
    assert type(model[0]) is Scaled
    assert isinstance(model[1], QuantLayer)
