# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Every tensor of a quantized model, out and in again."""

import copy

import pytest
import torch
from torch import nn
from twin_kit import attach

from mmdet_ptq.errors import CheckpointError
from mmdet_ptq.layers import (
    convert,
    named_tensors,
    non_finite,
    restore_tensors,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    convert(found)
    attach(found[0], torch.randn(4, 8))
    return found


def test_tensors_come_back(model):
    """Also those that only a correction and a reconstruction bring."""
    other = copy.deepcopy(model)
    model[0].shift_bias(torch.ones(5))
    model[0].fix_weight(model[0].weight_quantizer(model[0].weight))
    x = torch.randn(4, 8)
    expected, plain = model(x), other(x)
    assert not torch.equal(expected, plain)
    saved = {n: t.clone() for n, t in named_tensors(model).items()}
    assert list(saved) == sorted(saved)
    assert {'0.bias_shift', '0.rounded', '2.weight'} <= set(saved)
    for p in other.parameters():
        p.data.zero_()
    restore_tensors(other, saved)
    assert torch.equal(other(x), expected)
    # and they go again where the saved model has none
    back = {n: t.clone() for n, t in saved.items()}
    for name in ('0.bias_shift', '0.rounded'):
        back.pop(name)
    restore_tensors(other, back)
    assert torch.equal(other(x), plain)
    assert other[0].rounded is None and other[0].bias_shift is None


def test_a_shared_quantizer_is_saved_once(model):
    shared = model[0].act_quantizers['input']
    model[2].attach(acts=dict(input=shared))
    names = [n for n in named_tensors(model) if n.endswith('.scale')]
    assert names == [
        '0.act_quantizers.input.scale',
        '0.weight_quantizer.scale',
    ]
    saved = {n: t.clone() for n, t in named_tensors(model).items()}
    shared.set_range(torch.tensor([-9.0]), torch.tensor([9.0]))
    restore_tensors(model, saved)
    scale = model[2].act_quantizers['input'].scale
    assert torch.equal(scale.cpu(), saved[names[0]].cpu())


@pytest.mark.parametrize(
    ('change', 'says'),
    [
        (lambda t: t.pop('2.weight'), r'2\.weight'),
        (lambda t: t.update(more=torch.ones(1)), 'more'),
        (lambda t: t.update({'2.bias': torch.ones(9)}), r'2\.bias \(3,\) !='),
        (lambda t: t.update({f'{i}': 0 for i in range(20)}), 'and 12 more'),
    ],
)
def test_tensors_of_another_model(model, change, says):
    tensors = named_tensors(model)
    change(tensors)
    with pytest.raises(CheckpointError, match=says):
        restore_tensors(model, tensors)


def test_tensors_that_are_not_finite():
    found = dict(
        good=torch.zeros(2),
        nan=torch.tensor([0.0, float('nan')]),
        inf=torch.tensor([float('inf')], dtype=torch.float16),
        codes=torch.tensor([255], dtype=torch.uint8),
        flag=torch.tensor(True),
        empty=torch.empty(0),
    )
    assert non_finite(found) == ['nan', 'inf']
