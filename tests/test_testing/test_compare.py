# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Outputs are compared fairly."""

import pytest
import torch
from torch import nn

from mmdet_ptq.testing import Selections, bfloat16, cosine, raw_outputs


def test_cosine():
    a = [torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])]
    b = [torch.tensor([6.0, 8.0]), torch.tensor([1.0, 1.0])]
    assert cosine(a, b) == pytest.approx(0.5**0.5)
    assert cosine(a, b[:1]) == -1
    assert cosine([torch.zeros(2)], [torch.zeros(2)]) == 1
    # nothing compared is nothing shown
    assert cosine([], []) == -1


def test_selections_replays_choices_on_other_numbers():
    x, y = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 4.0, 6.0])
    with Selections() as first:
        assert x.topk(2)[1].tolist() == [1, 2]
        assert torch.argsort(x).tolist() == [0, 2, 1]
    with Selections(first.made):
        values, index = y.topk(2)
        assert index.tolist() == [1, 2] and values.tolist() == [4, 6]
        assert torch.argsort(y).tolist() == [0, 2, 1]
    assert y.topk(2)[1].tolist() == [2, 0]


def test_selections_replays_masks_as_tuples():
    """As Grounding DINO asks which scores are high enough."""
    high = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    with Selections() as seen:
        found = (high > 0.5).nonzero(as_tuple=True)
        (flat,) = torch.nonzero(high[0] > 0.5, as_tuple=True)
    assert [i.tolist() for i in found] == [[0, 1], [0, 1]]
    assert flat.tolist() == [0] and len(seen.made) == 2
    with Selections(seen.made):
        again = (1 - high > 0.5).nonzero(as_tuple=True)
        (flat,) = torch.nonzero(1 - high[0] > 0.5, as_tuple=True)
    assert [i.tolist() for i in again] == [[0, 1], [0, 1]]
    assert flat.tolist() == [0]


def test_selections_replays_local_maxima_only():
    x, y = torch.tensor([1.0, 3.0, 2.0]), torch.tensor([5.0, 4.0, 6.0])
    with Selections() as first:
        assert (x == torch.tensor([3.0, 3, 3])).tolist() == [0, 1, 0]
        assert (x == 3).any() and (x.long() == torch.ones(3).long()).any()
    assert len(first.made) == 1
    with Selections(first.made):
        assert (y == torch.tensor([6.0, 6, 6])).tolist() == [0, 1, 0]
        assert (y == torch.tensor([6.0, 6, 6])).tolist() == [0, 0, 1]


class Proposing(nn.Module):
    """An RPN that proposes what it is given, and ranks it."""

    def predict_by_feat(self, x):
        return [x.topk(2)[0]]


class Detecting(nn.Module):
    """A detector whose RPN is a part of a part."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Module()
        self.teacher.rpn_head = Proposing()
        self.fc = nn.Linear(2, 2)

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, x, mode):
        boxes = self.teacher.rpn_head.predict_by_feat(x)[0]
        return self.fc(boxes), x.topk(1)[0]


def test_proposals_are_given_again_wherever_the_rpn_is():
    torch.manual_seed(0)
    model, memory = Detecting(), {}
    first = raw_outputs(model, dict(x=torch.tensor([3.0, 2, 1])), memory)
    # on the way to proposals nothing is selected for later
    assert [x.tolist() for x in memory['selections']] == [[0]]
    again = raw_outputs(model, dict(x=torch.tensor([1.0, 5, 7])), memory)
    torch.testing.assert_close(again[0], first[0])
    assert again[1].item() == 1
    assert 'predict_by_feat' not in vars(model.teacher.rpn_head)


def test_bfloat16_leaves_nothing_behind():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight  # shared
    x = torch.randn(4, 8)
    before, weight = model(x), model[0].weight.clone()
    with bfloat16(model):
        rounded = model(x)
    assert torch.equal(model(x), before)
    assert torch.equal(model[0].weight, weight)
    error = (rounded - before).norm() / before.norm()
    assert 2**-11 < error < 2**-7
