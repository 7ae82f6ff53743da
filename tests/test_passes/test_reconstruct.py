# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The reconstruction pass on a small network."""

import re
from contextlib import nullcontext

import pytest
import torch
from reconstruct_model import (
    INIT,
    RULES,
    Net,
    batches,
    equal,
    error,
    reconstruct,
    stopped_and_resumed,
)

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import QuantLayer
from mmdet_ptq.losses import L2Loss
from mmdet_ptq.passes.reconstruct import Reconstruct
from mmdet_ptq.passes.reconstruct.batches import draw
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quantizers import LLAQuantizer
from mmdet_ptq.registry import LOSSES

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
LEARN = [dict(type='AdaRound'), dict(type='LearnedSteps')]


def uniform(bits='w3a4'):
    model = Net().eval()
    quantize_detector(
        model, batches(), dict(bits=bits, rules=RULES, passes=INIT)
    )
    return model


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
    a = reconstruct(learn=LEARN, drop_prob=0.0)[0]
    assert not equal(a, reconstruct(learn=LEARN, drop_prob=0.5)[0])

    def inputs(self, sample, i, *_):
        return self.images.cache.fetch(sample.inputs[i])

    # a step that knows of no dropping
    monkeypatch.setattr(QuantLayer, 'dropping', lambda *_: nullcontext())
    monkeypatch.setattr(Trainer, 'inputs', inputs)
    assert equal(a, reconstruct(learn=LEARN, drop_prob=0.0)[0])


def test_same_seed_same_result(monkeypatch):
    args = dict(learn=LEARN, drop_prob=0.5)
    original = Trainer.fit

    def fit(self, *given):
        torch.seed()  # of the global generator nothing depends
        return original(self, *given)

    monkeypatch.setattr(Trainer, 'fit', fit)
    first = reconstruct(**args)[0]
    assert equal(first, reconstruct(**args)[0])
    assert not equal(first, reconstruct(calibration=dict(seed=1), **args)[0])


CODEBOOK = [dict(type='LearnedCodebook', lr_a=0.1), *LEARN]


@pytest.fixture
def llaq(monkeypatch):
    """Weights take logarithmic levels."""
    weight = dict(type='LLAQuantizer', granularity='channel')
    rules = [dict(match='*', weight=weight, act={}), *RULES[1:]]
    monkeypatch.setattr('reconstruct_model.RULES', rules)
    monkeypatch.setitem(globals(), 'RULES', rules)


def test_codebooks_are_learned(llaq):
    model, session = reconstruct(learn=CODEBOOK, revert=False, iters=5)
    plain = uniform()
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


@pytest.mark.parametrize(
    'learn',
    [LEARN, [dict(type='LearnedWeights', lr_weight=1e-3)], CODEBOOK],
    ids=['rounding', 'weights', 'codebook'],
)
def test_worse_is_put_back(monkeypatch, request, learn):
    """With the sign of the loss turned, every unit gets worse."""
    original = L2Loss.__call__
    if learn is CODEBOOK:
        request.getfixturevalue('llaq')

    def turned(self, *args):
        value = original(self, *args)
        return -value if value.requires_grad else value

    monkeypatch.setattr(L2Loss, '__call__', turned)
    args = dict(learn=learn, drop_prob=0.5)
    model, session = reconstruct(**args)
    assert not any(r.kept for r in session.records)
    assert len(session.notes) == 6 and 'did not fall' in session.notes[0]
    assert equal(model, uniform())
    assert not equal(reconstruct(revert=False, **args)[0], uniform())


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


@pytest.mark.parametrize('stop_at', [3, 5])
def test_resume_is_the_uninterrupted_run(stop_at):
    args = dict(learn=LEARN, drop_prob=0.5, iters=20)
    whole, expected, _ = stopped_and_resumed(None, **args)
    model, session, store = stopped_and_resumed(stop_at, **args)
    done = stop_at - 1
    assert equal(model, whole)
    for ours, theirs in zip(session.records, expected.records, strict=True):
        assert ours.curve == theirs.curve
    assert store.count == stop_at + len(expected.records) - done


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


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(unit='stage'), 'block'),
        (dict(iters=-1), 'iters'),
        (dict(batch_size=0), 'batch_size'),
        (dict(drop_prob=1.5), 'drop_prob'),
        (dict(holdout=1.0), 'holdout'),
        (dict(global_every=0), 'global_every'),
        (
            dict(losses=[dict(type='DetectionLoss')], global_every=2),
            'images without a loss',
        ),
        (dict(learn=[]), 'learn'),
        (dict(learn=[dict(type='AdaRond')]), 'AdaRound'),
        (
            dict(learn=[dict(type='AdaRound'), dict(type='LearnedWeights')]),
            'two learners',
        ),
        (dict(losses=[dict(type='L2Loss', p=0)]), 'p must'),
        (dict(losses=[dict(type='FisherLoss')] * 2), 'two that take weights'),
        (
            dict(losses=[dict(type='FisherLoss', of=dict(type='Detect'))]),
            'Detect',
        ),
    ],
)
def test_bad_arguments(args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        reconstruct(**args)


def test_batches_do_not_depend_on_the_ranks():
    numbers = [j for j in range(16) if j % 8 != 7]
    found = draw(numbers, 4, seed=0)
    drawn = [next(found) for _ in range(40)]
    again = draw(numbers, 4, seed=0)
    assert drawn == [next(again) for _ in range(40)]
    for batch in drawn:
        assert len(set(batch)) == 4
        # two ranks own two each
        assert sum(j % 2 for j in batch) == 2
    # every image of a slot is used before one is used again
    first = [batch[0] for batch in drawn[:4]]
    assert sorted(first) == [0, 4, 8, 12]
    assert sorted(next(draw([3, 5], 8, seed=0))) == [3, 5]


def test_a_pass_is_built_from_a_config():
    built = Reconstruct(learn=LEARN)
    assert built.losses == [dict(type='L2Loss')]
