# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weight-standardised convolutions become plain ones that do the same."""

import pytest
import torch
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from torch import nn

from mmdet_ptq.layers import QuantLayer, convert
from mmdet_ptq.surgery import decompose


@pytest.mark.parametrize('cls', [ConvWS2d, ConvAWS2d])
@pytest.mark.parametrize('groups', [1, 2])
def test_same_output_and_keys(cls, groups):
    layer = cls(4, 6, 3, 2, 1, groups=groups)
    if cls is ConvAWS2d:
        layer.weight_gamma.uniform_(0.5, 2)
        layer.weight_beta.uniform_(-1, 1)
    model = nn.Sequential(layer, nn.ReLU())
    x = torch.randn(2, 4, 9, 7)
    before, keys = model(x), list(model.state_dict())
    assert decompose(model)[1] == {}
    assert type(model[0]) is nn.Conv2d
    torch.testing.assert_close(model(x), before)
    assert list(model.state_dict()) == keys
    convert(model)
    assert isinstance(model[0], QuantLayer)


def test_weight_by_hand():
    layer = ConvWS2d(1, 1, (1, 2), bias=False, eps=0.5)
    layer.weight.data = torch.tensor([[[[1.0, 3.0]]]])
    decompose(nn.Sequential(layer))
    # mean 2, deviation sqrt(2) (Bessel), so +-1 / (sqrt(2) + 0.5)
    hand = torch.tensor([-1.0, 1.0]) / (2**0.5 + 0.5)
    torch.testing.assert_close(layer.weight.flatten(), hand)
