# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges against extremes computed by hand."""

import copy

import pytest
import torch
from crossings import crossings
from torch import nn
from two_levels import PASSES, RULES, Tiny, batches, inputs_of

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.observers import LpObserver, search_weight_range
from mmdet_ptq.passes import SetRanges
from mmdet_ptq.quantizers import FitsPoints
from mmdet_ptq.surgery import FoldedNorm


def test_minmax_ranges_by_hand():
    data, reference = batches(), Tiny().eval()
    x = torch.cat(
        [
            t.flatten()
            for t in inputs_of(reference, 'bbox_head.0', data, 'predict')
        ]
    )
    model = Tiny().eval()
    session = quantize_detector(
        model, data, dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    quantizer = model.bbox_head[0].act_quantizers['input']
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    torch.testing.assert_close(
        quantizer.scale, ((high - low) / 255).reshape(1, 1)
    )
    assert session.edits == [FoldedNorm('backbone.1', 'backbone.0')]
    assert isinstance(model.backbone[1], nn.Identity)
    # what feeds the head at level 0 also feeds the side branch
    assert model.side.act_quantizers['input'] is quantizer


def test_ranges_for_each_level_and_group():
    data, reference = batches(), Tiny().eval()
    seen = inputs_of(reference, 'bbox_head.0', data, 'predict')
    rules = [
        *RULES,
        dict(match='@grouped', act=dict(granularity='group')),
        dict(match='*', act=dict(per_level=True)),
    ]
    model = Tiny().eval()
    quantize_detector(
        model, data, dict(bits='w8a8', rules=rules, passes=PASSES)
    )
    scale = model.bbox_head[0].act_quantizers['input'].scale
    for level in (0, 1):
        x = torch.cat([t.flatten() for t in seen[level::2]])
        torch.testing.assert_close(scale[level, 0], (x.max() - x.min()) / 255)
    assert scale[1, 0] < scale[0, 0] / 50
    assert model.backbone[3].act_quantizers['input'].scale.shape == (1, 8)


def test_norm_of_the_weights():
    """The search for weight ranges is told its exponent."""
    scales = {}
    for p in (1.0, 2.0, 8.0):
        model, weight = Tiny().eval(), Tiny().side.weight.detach()
        observer = dict(type='LpObserver', p=p)
        passes = [*PASSES[:2], dict(PASSES[2], weight_observer=observer)]
        quantize_detector(
            model, batches(1), dict(bits='w2a8', rules=RULES, passes=passes)
        )
        quantizer = model.side.weight_quantizer
        scales[p] = quantizer.scale.clone()
        quantizer.set_range(*search_weight_range(weight, quantizer, p=p))
        assert torch.equal(scales[p], quantizer.scale)
    assert not torch.equal(scales[1.0], scales[2.0])
    assert not torch.equal(scales[2.0], scales[8.0])


def test_ranges_of_all_weights_come_back_once(monkeypatch):
    counts, run = [], SetRanges.run

    def counted(self, session):
        with crossings() as found:
            run(self, session)
        counts.append(found)

    monkeypatch.setattr(SetRanges, 'run', counted)
    rules = [*RULES, dict(match='*', act=None)]
    passes = [*PASSES[:2], dict(type='SetRanges')]
    model = Tiny().eval()
    quantize_detector(
        model, batches(), dict(bits='w8a8', rules=rules, passes=passes)
    )
    assert counts == [dict(cpu=1)]
    assert model.side.weight_quantizer.initialized


KINDS = [
    dict(type='LogQuantizer', shift=0.5),
    dict(type='AdaLogQuantizer', shift=0.5),
    dict(type='TwinUniformQuantizer'),
    dict(type='TwinUniformQuantizer', form='gelu'),
    dict(type='PowerOfTwoQuantizer'),
]


@pytest.mark.parametrize('act', KINDS, ids=str)
def test_every_quantizer_of_inputs(act):
    """Its range and what that leaves open, for each pyramid level."""
    rules = [*RULES, dict(match='*', act=dict(act, per_level=True))]
    passes = [
        dict(type='Observe', observer=dict(type='LpObserver', p=3.0)),
        dict(type='SetRanges'),
    ]
    data, model = batches(), Tiny().eval()
    seen = inputs_of(Tiny().eval(), 'bbox_head.0', data, 'predict')
    quantize_detector(
        model, data, dict(bits='w8a4', rules=rules, passes=passes)
    )
    q = model.bbox_head[0].act_quantizers['input']
    assert q.num_levels() == 2
    observer = LpObserver(p=3.0)
    observer.bind(q.granularity, 2, torch.get_default_device())
    for i, x in enumerate(seen):
        observer.observe(x, i % 2)
    other = copy.deepcopy(q)
    other.set_range(*observer.ranges(other))
    moved = False
    for level in (0, 1):
        x = torch.cat(seen[level::2])
        fitted, ranged = (
            (one(x, level) - x).abs().pow(3).mean() for one in (q, other)
        )
        # as well as bins can tell
        assert fitted <= 1.05 * ranged
        moved |= bool(fitted != ranged)
    fits = isinstance(q, FitsPoints) and not act.get('form')
    assert moved == fits
    with torch.no_grad():
        found = model.test_step(data[0])
    assert all(y.isfinite().all() for y in found)
