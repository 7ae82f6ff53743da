# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batches are divided where channels are grouped in each image."""

import copy

import pytest
import torch
from torch import nn

from mmdet_ptq import context
from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import convert, divide_batches, float_mode
from mmdet_ptq.quantizers import InstanceGroupQuantizer, UniformQuantizer


class Detector(nn.Module):
    """Of each image one number for each channel."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.seen = []

    def forward(self, inputs, data_samples=None, mode='tensor'):
        self.seen.append(context.images())
        found = self.layer(inputs).mean(1)
        if mode == 'tensor':
            return found
        return list(zip(found, data_samples, strict=True))


def make(quantizer):
    torch.manual_seed(0)
    model = Detector()
    convert(model)
    model.layer.attach(acts=dict(input=quantizer))
    divide_batches(model)
    return model.eval()


def grouped(kind='channel'):
    q = InstanceGroupQuantizer(3, num_groups=2, granularity=kind, axis=-1)
    q.set_range(torch.zeros(2), torch.tensor([1.0, 9.0]))
    return q


# the channels of the second image are ten times as wide
BATCH = torch.rand(2, 5, 4) * torch.tensor([1.0, 10.0])[:, None, None]


def test_several_images_are_as_one_by_one():
    model = make(grouped())
    found = model(BATCH, ['a', 'b'], mode='predict')
    assert model.seen == [1, 1]
    alone = [
        model(BATCH[i : i + 1], [n], 'predict')[0]
        for i, n in ((0, 'a'), (1, 'b'))
    ]
    for (x, name), (y, other) in zip(found, alone, strict=True):
        assert torch.equal(x, y) and name == other
    # the channels of both together would have taken the wide grid
    mixed = model.layer.act_quantizers['input'](BATCH)
    assert not torch.equal(
        mixed[:1], model.layer.act_quantizers['input'](BATCH[:1])
    )


def test_a_copy_runs_itself():
    model = make(grouped())
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.layer.bias += 1
    first, second = (
        m(BATCH[:1], ['a'], mode='predict')[0][0] for m in (model, other)
    )
    torch.testing.assert_close(second, first + 1)


def test_raw_outputs_of_several_are_refused():
    model = make(grouped())
    with pytest.raises(PTQError, match='of several images can be put'):
        model(BATCH)
    assert model(BATCH[:1]).shape == (1, 2)


@pytest.mark.parametrize('what', ['row', 'uniform', 'float'])
def test_others_run_together(what):
    q = grouped('row') if what == 'row' else grouped()
    if what == 'uniform':
        q = UniformQuantizer(3)
        q.set_range(torch.zeros(1), torch.ones(1))
    model = make(q)
    if what == 'float':
        with float_mode(model):
            model(BATCH)
    else:
        model(BATCH)
    assert model.seen == [2]
