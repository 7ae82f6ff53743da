# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The reconstruction pass on a small network."""

import re
from contextlib import nullcontext

import pytest
import torch
from reconstruct_model import (
    INIT,
    LEARN,
    RULES,
    Net,
    batches,
    equal,
    error,
    reconstruct,
)

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import Batches
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import QuantLayer
from mmdet_ptq.losses import L2Loss
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import LLAQuantizer
from mmdet_ptq.registry import LOSSES

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def uniform(rules=RULES):
    model = Net().eval()
    quantize_detector(
        model, batches(), dict(bits='w3a4', rules=rules, passes=INIT)
    )
    return model


def test_a_weight_that_cannot_be_learned_is_found_first():
    groups = dict(type='ChannelGroups', bits=4, widths=[3, 4], channels=4)
    rules = [*RULES, dict(match='neck.0', weight=groups)]
    last = dict(type='Reconstruct', learn=[dict(type='AdaRound')])
    config = dict(bits='w3a4', rules=rules, passes=[*INIT, last])
    model, data = Net().eval(), batches(1)
    match = 'AdaRound: neck.0: the rounding of a ChannelGroups cannot'
    with pytest.raises(QuantConfigError, match=match):
        prepare(model, parse_quant_cfg(config), data[0], Batches(model, data))


def test_no_step_is_uniform_to_the_bit():
    assert equal(reconstruct(iters=0)[0], uniform())


@pytest.mark.parametrize(
    'args',
    [
        dict(),
        dict(learn=LEARN, drop_prob=0.5),
        dict(learn=LEARN, unit='layer'),
        dict(input_distribution='float'),
        dict(losses=[dict(type='FisherLoss')]),
        dict(losses=[dict(type='L2Loss'), dict(type='DetectionLoss')]),
        dict(
            losses=[dict(type='L2Loss'), dict(type='DetectionLoss')],
            separate_global=True,
            drop_prob=0.5,
        ),
        dict(learn=[dict(type='LearnedWeights')]),
    ],
    ids=str,
)
def test_better_than_nearest_rounding(args):
    model, session = reconstruct(iters=100, **args)
    assert error(model, batches()) < 0.96 * error(uniform(), batches())
    kept = [r for r in session.records if r.kept]
    assert len(kept) >= 2
    assert all(r.after < r.before for r in kept)


def test_units_of_the_records():
    _, session = reconstruct(iters=2)
    assert [r.unit for r in session.records] == [
        'backbone.0',
        'backbone.2',
        'backbone.3',
        'neck.0',
        'neck.1',
        'tower',
    ]
    _, session = reconstruct(iters=2, unit='layer')
    assert len(session.records) == 8


def test_rounding_stays_between_neighbours():
    model, _ = reconstruct(revert=False)
    plain = uniform()
    exact = Net().eval()
    moved = 0
    for name in ('backbone.2.conv1', 'tower'):
        found = model.get_submodule(name)
        nearest = plain.get_submodule(name).weight
        scale = found.weight_quantizer.scale.reshape(-1, 1, 1, 1)
        weight = exact.get_submodule(name).weight
        inside = (nearest - weight).abs() <= scale / 2 * 1.001
        off = ((found.weight - weight).abs() / scale)[inside]
        assert off.max() <= 1.001
        moved += int((found.weight != nearest).sum())
        # on the grid: quantizing again changes nothing
        assert torch.equal(found.weight_quantizer(found.weight), found.weight)
    assert moved > 20


def test_drop_prob_zero_is_no_dropping(monkeypatch):
    args = dict(learn=LEARN, iters=10)
    a = reconstruct(drop_prob=0.0, **args)[0]
    assert not equal(a, reconstruct(drop_prob=0.5, **args)[0])

    class Plain(Trainer):
        def inputs(self, sample, i, *_):
            return self.images.cache.fetch(sample.inputs[i])

    # a step that knows of no dropping
    monkeypatch.setattr(QuantLayer, 'dropping', lambda *_: nullcontext())
    args = dict(args, drop_prob=0.0)
    assert equal(a, reconstruct(trainer=Plain, **args)[0])


def test_same_seed_same_result():
    class Shaken(Trainer):
        def fit(self, *given):
            torch.seed()  # of the global generator nothing depends
            return super().fit(*given)

    args = dict(learn=LEARN, drop_prob=0.5, iters=10, trainer=Shaken)
    first = reconstruct(**args)[0]
    assert equal(first, reconstruct(**args)[0])
    assert not equal(first, reconstruct(calibration=dict(seed=1), **args)[0])


CODEBOOK = [dict(type='LearnedCodebook', lr_a=0.1), *LEARN]


LLAQ = [
    dict(
        match='*',
        weight=dict(type='LLAQuantizer', granularity='channel'),
        act={},
    ),
    *RULES[1:],
]


def test_codebooks_are_learned():
    model, session = reconstruct(
        learn=CODEBOOK, revert=False, iters=5, rules=LLAQ
    )
    plain = uniform(LLAQ)
    for record in session.records:
        assert len(set(record.curve)) > 1
    for name in ('backbone.2.conv1', 'tower'):
        found = model.get_submodule(name)
        ours, theirs = (
            m.get_submodule(name).weight_quantizer for m in (model, plain)
        )
        assert isinstance(ours, LLAQuantizer)
        assert (ours.a != theirs.a).any()
        assert (ours.log_k != theirs.log_k).any()
        assert torch.equal(ours(found.weight), found.weight)


@LOSSES.register_module()
class Turned(L2Loss):
    """Learns to be worse."""

    def __call__(self, *args):
        value = super().__call__(*args)
        return -value if value.requires_grad else value


@pytest.mark.parametrize(
    ('learn', 'rules'),
    [
        (LEARN, RULES),
        ([dict(type='LearnedWeights', lr_weight=1e-3)], RULES),
        (CODEBOOK, LLAQ),
    ],
    ids=['rounding', 'weights', 'codebook'],
)
def test_worse_is_put_back(learn, rules):
    """With the sign of the loss turned, every unit gets worse."""
    losses = [dict(type='Turned')]
    args = dict(learn=learn, drop_prob=0.5, iters=15)
    args.update(losses=losses, rules=rules)
    model, session = reconstruct(**args)
    assert not any(r.kept for r in session.records)
    assert len(session.notes) == 6 and 'did not fall' in session.notes[0]
    assert equal(model, uniform(rules))
    assert not equal(reconstruct(revert=False, **args)[0], uniform(rules))


@LOSSES.register_module()
class BreaksLater(L2Loss):
    calls = 0

    def __call__(self, outputs, targets, weights):
        value = super().__call__(outputs, targets, weights)
        if value.requires_grad and targets[0].shape[-1] == 6:
            return value * float('nan')
        return value


def test_nan_puts_the_unit_back_and_goes_on():
    # only the coarse level of images 12 pixels wide is 6 wide
    model, session = reconstruct(losses=[dict(type='BreaksLater')])
    broken = {r.unit for r in session.records if 'NaN' in r.why}
    assert broken == {'neck.1'}
    assert any('neck.1' in n and 'NaN' in n for n in session.notes)
    assert session.records[-1].unit == 'tower'
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_cache_bound_and_disk_give_the_same():
    args = dict(learn=LEARN, drop_prob=0.5, iters=10)
    in_memory = reconstruct(**args)[0]
    on_disk = reconstruct(calibration=dict(cache='60KiB'), **args)[0]
    assert equal(in_memory, on_disk)


def test_cache_too_small_for_a_batch():
    with pytest.raises(QuantConfigError, match=r"give at least cache='1MiB'"):
        reconstruct(calibration=dict(cache='1KiB'))


def test_cache_has_to_hold_the_images_of_a_step():
    needed = []
    for size in (1, 3):
        with pytest.raises(QuantConfigError) as error:
            reconstruct(calibration=dict(cache='1KiB'), batch_size=size)
        needed.append(int(re.search(r'the (\d+) bytes', str(error.value))[1]))
    assert needed[1] == 3 * needed[0]
