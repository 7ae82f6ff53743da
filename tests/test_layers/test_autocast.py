# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Float twins that compute in bfloat16."""

import pytest
import torch
from torch import nn
from twin_kit import LAYERS, attach, twin_of

from mmdet_ptq.layers import in_bfloat16


def twin(kind, quantized=True):
    layer, args = LAYERS[kind]
    found = twin_of(layer)
    attach(found, args[0])
    found.switch(quantized, quantized)
    return found, args


@pytest.mark.parametrize('kind', ['conv', 'deconv', 'linear'])
def test_float_twins_compute_in_bfloat16(kind):
    layer, (x,) = twin(kind, quantized=False)
    with torch.no_grad():
        narrow = nn.Module.__call__(layer.bfloat16(), x.bfloat16()).float()
        exact = layer.float()(x)
        with in_bfloat16({'0': layer}, x.device):
            found = layer(x)
        after = layer(x)
    assert found.dtype is torch.float32
    # the weight has been rounded to bfloat16 already
    torch.testing.assert_close(found, narrow, rtol=1e-2, atol=1e-2)
    assert not torch.equal(found, exact)
    assert torch.equal(after, exact)


@pytest.mark.parametrize('kind', list(LAYERS))
def test_quantizing_twins_are_left_alone(kind):
    layer, args = twin(kind)
    with torch.no_grad():
        expected = layer(*args)
        with in_bfloat16({'0': layer}, args[0].device):
            assert torch.equal(layer(*args), expected)


@pytest.mark.parametrize('kind', list(LAYERS))
def test_every_kind_of_twin_gives_float32(kind):
    layer, args = twin(kind, quantized=False)
    with torch.no_grad(), in_bfloat16({'0': layer}, args[0].device):
        found = layer(*args)
    assert found.dtype is torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found, layer(*args), rtol=0.1, atol=0.1)


def test_nothing_stays_behind_after_an_error():
    layer, (x,) = twin('conv', quantized=False)
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind)
    with pytest.raises(RuntimeError), in_bfloat16({'0': layer}, x.device):
        layer(x[:, :3])
    assert not torch.is_autocast_enabled(kind)
    with torch.autocast(kind, torch.bfloat16):
        with in_bfloat16({'0': layer}, x.device):
            layer(x)
            assert torch.is_autocast_enabled(kind)
        assert torch.is_autocast_enabled(kind)
    assert torch.get_autocast_dtype(kind) == dtype
    assert not layer._forward_hooks and not layer._forward_pre_hooks
