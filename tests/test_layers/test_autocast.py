# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What autocast leaves in float32."""

import pytest
import torch
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from torch import nn
from twin_kit import LAYERS, attach, twin_of

from mmdet_ptq.layers import exact_under_autocast, float_mode


def quantized(kind):
    layer, args = LAYERS[kind]
    twin = twin_of(layer)
    attach(twin, args[0])
    return nn.Sequential(twin), args


def cast(x):
    return torch.autocast(x.device.type, torch.bfloat16)


@pytest.mark.parametrize('kind', ['conv', 'linear', 'deform_v2_pack'])
def test_a_quantizing_twin_stays_exact(kind):
    model, (x, *_) = quantized(kind)
    narrow = x.bfloat16()
    with torch.no_grad():
        expected = model(narrow.float())
        with exact_under_autocast(model, x.device), cast(x):
            found = model(narrow)
            assert torch.is_autocast_enabled(x.device.type)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)


def test_a_float_twin_goes_along():
    model, (x,) = quantized('conv')
    with torch.no_grad(), float_mode(model):
        with exact_under_autocast(model, x.device), cast(x):
            assert model(x).dtype is torch.bfloat16
        # and without autocast nothing changes
        with exact_under_autocast(model, x.device):
            assert model(x).dtype is torch.float32


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)
        self.pool = RoIAlign(2)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x, rois):
        x = self.conv(x)
        found = x.new_zeros(len(rois), 4, 2, 2)
        # as MMDetection does, which needs the same type
        found[rois[:, 0] == 0] = self.pool(x, rois)
        return self.last(found)


def test_operators_of_mmcv_get_float32():
    """They have no kernels for bfloat16."""
    model, x = Pooled(), torch.randn(1, 4, 9, 9)
    rois = torch.tensor([[0.0, 1, 1, 5, 5]])
    unknown = pytest.raises(RuntimeError, match='BFloat16')
    with torch.no_grad(), cast(x), unknown:
        model(x, rois)
    with torch.no_grad(), exact_under_autocast(model, x.device), cast(x):
        found = model(x, rois)
    assert found.dtype is torch.bfloat16
    with torch.no_grad():
        torch.testing.assert_close(
            found.float(), model(x, rois), rtol=0.03, atol=0.03
        )


class Failing(ModulatedDeformConv2dPack):
    def forward(self, x):
        raise RuntimeError('no')


def test_after_an_error_the_next_forward_starts_afresh():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), Failing(8, 8, 3))
    x = torch.randn(1, 8, 5, 5)
    with exact_under_autocast(model, x.device), torch.no_grad():
        with pytest.raises(RuntimeError, match='no'), cast(x):
            model(x)
        with cast(x):
            assert model[0](x).dtype is torch.bfloat16
        assert model[0](x).dtype is torch.float32
    assert not model[1]._forward_hooks
