# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Factors and shifts of channels, folded into a norm and its readers."""

import copy
import json

import pytest
import torch
from mmdet.models.backbones.swin import ShiftWindowMSA
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.surgery import ReparametrizedNorm, edits_of

FACTORS = torch.tensor([0.5, 2.0, 10.0, 0.1])
SHIFT = torch.tensor([1.0, -2.0, 0.0, 3.0])


class Net(nn.Module):
    """A norm whose output is padded, shifted, and read in windows."""

    def __init__(self, shift=0, bias=True):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(4, bias=bias)
        self.norm.weight.data.normal_()
        self.windows = ShiftWindowMSA(4, 2, 3, shift, qkv_bias=bias)

    def forward(self, x):
        return self.windows(self.norm(x), (5, 4))


class Plain(nn.Module):
    """A norm that a linear layer and a convolution read."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.LayerNorm(4)
        self.norm.bias.data.normal_()
        self.fc = nn.Linear(4, 3, bias=False)
        self.conv = nn.Conv2d(4, 3, 2, 2)

    def forward(self, x):
        y = self.norm(x)
        maps = y[:, :16].transpose(1, 2).unflatten(2, (4, 4))
        return torch.cat([self.fc(y).flatten(), self.conv(maps).flatten()])


QKV, PADS = 'windows.w_msa.qkv', 'windows'
CASES = dict(
    plain_windows=(Net, {}, [QKV], [PADS]),
    shifted_windows=(Net, dict(shift=1), [QKV], [PADS]),
    no_bias=(Net, dict(bias=False), [QKV], [PADS]),
    readers=(Plain, {}, ['fc', 'conv'], []),
)


def edited(case, shift=SHIFT):
    make, args, layers, pads = CASES[case]
    model = make(**args).eval().double()
    edit = ReparametrizedNorm.by('norm', layers, FACTORS, shift, pads)
    return model, edit


@pytest.mark.parametrize('shift', [None, SHIFT])
@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_the_model_gives_the_same(case, shift):
    model, edit = edited(case, shift)
    x = torch.randn(2, 20, 4, dtype=torch.double)
    before, given = model(x), model.norm(x)
    edit.apply(model)
    torch.testing.assert_close(model(x), before, rtol=1e-10, atol=1e-10)
    b = 0 if shift is None else shift
    torch.testing.assert_close(model.norm(x), given / FACTORS - b)


@torch.no_grad()
def test_padded_zeros_would_not_do():
    """What the test above would not see without a border."""
    model, edit = edited('plain_windows')
    x = torch.randn(2, 20, 4, dtype=torch.double)
    before = model(x)
    edit.pads = []
    edit.apply(model)
    assert (model(x) - before).abs().max() > 1e-2


@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_rebuilt_it_takes_the_tensors(case):
    model, edit = edited(case)
    edit.apply(model)
    found = edits_of(json.loads(json.dumps([edit.to_dict()])))
    assert found == [edit]
    make, args, _, _ = CASES[case]
    other = make(**args).eval().double()
    found[0].rebuild(other)
    for p in other.parameters():
        p.zero_()
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 20, 4, dtype=torch.double)
    assert torch.equal(other(x), model(x))


def test_what_does_not_fit_leaves_the_model_as_it_is():
    class Odd(Plain):
        def __init__(self):
            super().__init__()
            self.wide = nn.Linear(5, 3)
            self.padded = nn.Conv2d(4, 4, 3, padding=1)
            self.grouped = nn.Conv2d(4, 4, 1, groups=2)
            self.bare = nn.LayerNorm(4, elementwise_affine=False)

    model = Odd()
    before = copy.deepcopy(model.state_dict())
    for norm, layers, pads, why in (
        ('bare', ['fc'], [], 'no weight for each channel'),
        ('norm', ['fc', 'wide'], [], '5 input channels'),
        ('norm', ['fc', 'padded'], [], 'adds zeros'),
        ('norm', ['fc', 'grouped'], [], 'groups'),
        ('norm', ['fc'], ['conv'], 'cannot pad with a value'),
        ('norm', ['fc', 'gone'], [], 'no module'),
    ):
        edit = ReparametrizedNorm.by(norm, layers, FACTORS, SHIFT, pads)
        with pytest.raises(PTQError, match=why):
            edit.apply(model)
    edit = ReparametrizedNorm.by('norm', ['fc'], FACTORS[:3])
    with pytest.raises(PTQError, match='4 channels'):
        edit.apply(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[k], t) for k, t in before.items())
