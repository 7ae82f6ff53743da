# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ports and pyramid levels."""

import torch
from torch import nn
from twin_kit import LAYERS, attach, twin_of

from mmdet_ptq.layers import convert


class Levels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, xs):
        return [self.conv(x) for x in xs]


def test_pyramid_levels_follow_the_calls():
    model = Levels()
    convert(model)
    model.conv.attach(levels=3)
    levels = []
    xs = [torch.randn(1, 4, s, s) for s in (4, 2, 1)]
    with model.conv.listening(lambda port, level, x: levels.append(level)):
        model(xs)
        model(xs[:2])
        model(xs)
        # a forward that stops early does not shift the next one
        assert levels == [0, 1, 2, 0, 1, 0, 1, 2]
        # and layers called by themselves go round
        for x in (*xs, xs[0]):
            model.conv(x)
    assert levels[8:] == [0, 1, 2, 0]


def test_gradient_reaches_weight_through_quantizer():
    layer, inputs = LAYERS['conv']
    twin = twin_of(layer)
    attach(twin, inputs[0])
    twin(*inputs).sum().backward()
    assert twin.weight.grad is not None and twin.weight.grad.abs().sum() > 0
    assert 'weight' not in twin.__dict__
