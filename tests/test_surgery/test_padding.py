# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Maps that are padded with a value for each channel."""

import pytest
import torch
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import nn
from torch.nn import functional

from mmdet_ptq.errors import PTQError
from mmdet_ptq.surgery import PadsWithValue, can_pad
from mmdet_ptq.surgery.padding import pad_with, set_padding

VALUE = torch.tensor([1.0, -2.0, 3.0])


@pytest.mark.parametrize('bottom, right', [(2, 1), (0, 2), (3, 0), (0, 0)])
def test_the_border_has_the_value(bottom, right):
    x = torch.randn(2, 4, 5, 3)
    found = pad_with(x, (0, 0, 0, right, 0, bottom), channels=VALUE)
    assert found.shape == (2, 4 + bottom, 5 + right, 3)
    for n in range(2):
        for i in range(4 + bottom):
            for j in range(5 + right):
                inside = i < 4 and j < 5
                wanted = x[n, i, j] if inside else VALUE
                assert torch.equal(found[n, i, j], wanted)


@pytest.mark.parametrize(
    'pad, more',
    [
        ((1, 1), {}),
        ((0, 0, 1, 0), {}),
        ((0, 0, 0, 1), dict(mode='reflect')),
        ((0, 0, 0, 1), dict(value=1.0)),
    ],
)
def test_other_pads_are_refused(pad, more):
    with pytest.raises(PTQError, match='right and bottom'):
        pad_with(torch.randn(1, 2, 2, 3), pad, **more, channels=VALUE)


@pytest.mark.parametrize('shift', [0, 1])
@torch.no_grad()
def test_window_attention_sees_the_value(shift):
    """As if the map had been padded before, and the window were right."""
    torch.manual_seed(0)
    attention = ShiftWindowMSA(8, 2, 3, shift).eval()
    assert can_pad(attention) and not can_pad(nn.Linear(2, 2))
    x, value = torch.randn(2, 5, 4, 8), torch.randn(8)
    whole = value.expand(2, 6, 6, 8).clone()
    whole[:, :5, :4] = x
    expected = attention(whole.flatten(1, 2), (6, 6)).view(2, 6, 6, 8)
    plain = attention(x.flatten(1, 2), (5, 4))
    set_padding(attention, value)
    assert isinstance(attention, ShiftWindowMSA)
    found = attention(x.flatten(1, 2), (5, 4)).view(2, 5, 4, 8)
    torch.testing.assert_close(found, expected[:, :5, :4])
    assert not torch.allclose(found.flatten(1, 2), plain, atol=1e-2)


@torch.no_grad()
def test_the_first_pad_alone():
    class Twice(nn.Module):
        def forward(self, x):
            y = functional.pad(x, (0, 0, 0, 1))
            return functional.pad(y, (0, 0, 0, 1))

    class PaddedTwice(PadsWithValue, Twice):
        pass

    module = PaddedTwice()
    module.register_buffer('pad_value', VALUE)
    found = module(torch.randn(1, 2, 2, 3))
    assert torch.equal(found[0, :, 2], VALUE.expand(2, 3))
    assert not found[0, :, 3].any()
