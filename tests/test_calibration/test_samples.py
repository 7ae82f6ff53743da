# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Calibration images, and what units make of them."""

from types import SimpleNamespace

import pytest
import torch
from reconstruct_model import Net, inside, reconstruct
from torch import nn

from mmdet_ptq.calibration import ActivationCache, samples
from mmdet_ptq.context import current
from mmdet_ptq.errors import NumericError
from mmdet_ptq.layers import convert

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


class Shared(Net):
    """Both convolutions of the neck read the same tensor."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        fine, coarse = self.neck[0](x), self.neck[1](x)[..., ::2, ::2]
        return [self.out(self.tower(f).relu()) for f in (fine, coarse)]


def test_a_shared_range_is_that_of_the_first_unit():
    def look(trainer, learners, acts, k):
        mine = {
            id(q)
            for layer in trainer.view.layers.values()
            for q in layer.act_quantizers.values()
        }
        assert {id(q) for q in acts} <= mine
        return [id(q) for q in acts], mine

    found = inside(look, only=None, net=Shared)
    given = [q for acts, _ in found.values() for q in acts]
    assert len(set(given)) == len(given)
    assert set(given) == set().union(*(mine for _, mine in found.values()))
    assert found['neck.0'][1] == found['neck.1'][1]
    assert len(found['neck.0'][0]) == 1 and not found['neck.1'][0]


def test_float_overflow_in_a_unit_is_told():
    """No quantizer reads what the last convolution gives."""

    class Overflowing(Net):
        def __init__(self):
            super().__init__()
            self.tower.weight.data[0] = 1e38

    init = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe'),
        dict(type='SetRanges'),
    ]
    with pytest.raises(NumericError, match=r'tower.* image 0'):
        reconstruct(iters=1, init=init, net=Overflowing)


class Given(nn.Sequential):
    """Takes batches as they are."""

    def data_preprocessor(self, data, _):
        return dict(inputs=data, data_samples=[None])


def images_of(model, total, adapter):
    """Images of which the third cannot be read."""
    feed = SimpleNamespace(
        total=total, batch=lambda i: None if i == 2 else torch.zeros(1)
    )
    session = SimpleNamespace(model=model, feed=feed, progress=lambda *_: None)
    return samples.Images(session, ActivationCache(99, '.'), adapter, [])


def test_images_of_a_rank(monkeypatch):
    """Numbers go round the ranks, unreadable images have none."""
    monkeypatch.setattr(samples, 'get_rank', lambda: 1)
    monkeypatch.setattr(samples, 'get_world_size', lambda: 3)
    monkeypatch.setattr(
        samples, 'all_gather_object', lambda mine: [[0, 3], mine, [8, 2]]
    )
    adapter = SimpleNamespace(anchor=lambda *_: None)
    images = images_of(Given(), 4, adapter)
    assert images.mine == [1, 4, 10]
    assert images.everyone == [0, 1, 2, 3, 4, 8, 10]


def test_a_forward_starts_at_the_first_level():
    """An adapter calls parts of the detector, which resets nothing."""
    model = Given(nn.Linear(2, 2))
    convert(model)
    model[0].attach(levels=4)
    current().set_level(model[0].call_key, 3)

    def level(*_):
        return current().next_level(model[0].call_key, 4)

    levels = []
    adapter = SimpleNamespace(
        anchor=lambda *_: levels.append(level()), outputs=level
    )
    images = images_of(model, 1, adapter)
    assert levels == [0] and images.run(0) == 0
    assert level() == 3
