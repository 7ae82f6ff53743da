# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Each edit made, and made again on a model without its numbers."""

import copy
import json

import pytest
import torch
from torch import nn

from mmdet_ptq.errors import PTQError, QuantConfigError
from mmdet_ptq.surgery import (
    AddedBias,
    Decomposed,
    FoldedNorm,
    SplitMultiheadAttention,
    edits_of,
)


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.plain = nn.Conv2d(4, 4, 1, bias=False)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm.running_var.uniform_(0.5, 2)
        self.norm.running_mean.normal_()

    def forward(self, x):
        x = self.plain(self.norm(self.conv(x))).flatten(2).mT
        return self.attention(x, x, x)[0]


EDITS = [
    Decomposed('attention'),
    FoldedNorm('norm', 'conv'),
    AddedBias('plain'),
]


def test_rebuilt_model_takes_the_tensors_and_computes_the_same():
    x = torch.randn(2, 3, 5, 5)
    model = Net().eval()
    with torch.no_grad():
        before = model(x)
        for edit in EDITS:
            edit.apply(model)
        torch.testing.assert_close(model(x), before)
    found = edits_of(json.loads(json.dumps([e.to_dict() for e in EDITS])))
    assert found == EDITS
    other = Net(seed=1).eval()
    for edit in found:
        edit.rebuild(other)
    other.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    assert isinstance(other.attention, SplitMultiheadAttention)
    assert isinstance(other.norm, nn.Identity)
    assert other.plain.bias.tolist() == [0.0] * 4


def test_a_folded_norm_is_kept_as_it_was():
    model = Net().eval()
    norm, mean = model.norm, model.norm.running_mean.clone()
    for make in (FoldedNorm.apply, FoldedNorm.rebuild):
        edit = FoldedNorm('norm', 'conv')
        fresh = copy.deepcopy(model)
        make(edit, fresh)
        assert torch.equal(edit.removed.running_mean, mean)
        assert type(edit.removed) is type(norm)


@pytest.mark.parametrize(
    'edit, match',
    [
        (Decomposed('conv'), 'nothing is registered for Conv2d'),
        (Decomposed('head'), "no module 'head'"),
        (FoldedNorm('nom', 'conv'), "no module 'nom'"),
        (FoldedNorm('plain', 'conv'), 'not a batch norm'),
        (AddedBias('norm.x'), "no module 'norm.x'"),
        (AddedBias('attention'), 'cannot have a bias'),
    ],
)
def test_an_edit_that_does_not_fit(edit, match):
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PTQError, match=match):
        edit.apply(model)
    assert list(model.state_dict()) == list(before)


def test_unknown_edit():
    with pytest.raises(QuantConfigError, match=r"'FoldNorm'.*'FoldedNorm'"):
        edits_of([dict(type='FoldNorm', norm='a', layer='b')])
