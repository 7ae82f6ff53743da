# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Steps of a unit, and what is kept of them."""

import copy
from itertools import cycle

import pytest
import torch
from crossings import crossings
from reconstruct_model import (
    BLOCK,
    LOSSES,
    batches,
    equal,
    inside,
    reconstruct,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmdet_ptq.calibration import ActivationCache, size_of
from mmdet_ptq.losses import L2Loss
from mmdet_ptq.passes.reconstruct import AdaRound, LearnedSteps
from mmdet_ptq.passes.reconstruct import trainer as module
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import load_recipe
from mmdet_ptq.registry import LOSSES as LOSSES_REGISTRY

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


@pytest.mark.parametrize(
    ('holdout', 'held'),
    [(0.125, [7, 15]), (0.25, [3, 7, 11, 15]), (0.9, list(range(1, 16, 2)))],
)
def test_held_out_images_are_not_learned_from(holdout, held):
    def look(trainer, *_):
        train, found = trainer.split()
        assert found == held
        assert train == [j for j in range(16) if j not in held]

    inside(look, holdout=holdout)


def test_few_images_to_hold_out():
    def look(trainer, *_):
        return trainer.split()

    assert inside(look, holdout=0.0, data=batches(3)) == ([0, 1, 2],) * 2
    assert inside(look, data=batches(3)) == ([0, 1], [2])
    assert inside(look, data=batches(1)) == ([0], [0])


@pytest.fixture
def steps(monkeypatch):
    """Notes every step: images, seeds, and rate of every group."""
    found = dict(batches=[], seeds=[], rates=[], factors=[])
    adam = torch.optim.Adam.step

    class Noting(Trainer):
        def loss(self, j, drop_prob=0.0, generator=None, factor=1):
            if generator is not None:
                key = self.view.name, len(found['batches']), j
                found['seeds'].append((key, generator.initial_seed()))
                found['factors'].append(factor)
            return super().loss(j, drop_prob, generator, factor)

        def step(self, learners, batch, *args):
            found['batches'].append((self.view.name, batch))
            return super().step(learners, batch, *args)

    def noted_adam(self, *args, **kwargs):
        found['rates'].append([g['lr'] for g in self.param_groups])
        return adam(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, 'step', noted_adam)

    def run(**args):
        for noted in found.values():
            noted.clear()
        reconstruct(trainer=Noting, **args)
        return copy.deepcopy(found)

    return run


def test_steps_of_a_run(steps):
    learn = [dict(type='AdaRound', lr=0.1), dict(type='LearnedSteps', lr=0.2)]
    args = dict(learn=learn, iters=4, data=batches(8), drop_prob=0.5)
    first = steps(**args)
    # image 7 is held out
    drawn = [j for _, batch in first['batches'] for j in batch]
    assert set(drawn) == set(range(7))
    assert all(len(batch) == 2 for _, batch in first['batches'])
    # each mask is one of its own
    seeds = [seed for _, seed in first['seeds']]
    assert len(seeds) == len(set(seeds)) == 6 * 4 * 2
    # units see the images in different orders
    orders = {}
    for name, batch in first['batches']:
        orders.setdefault(name, []).extend(batch)
    assert len({tuple(order) for order in orders.values()}) > 1
    # rounding keeps its rate, the steps fall along a cosine
    rates = first['rates'][:4]
    assert [group[-1] for group in rates] == [0.1] * 4
    falling = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert [group[0] for group in rates] == pytest.approx(
        [0.2 * share for share in falling]
    )
    # another seed: other images, other masks
    second = steps(calibration=dict(seed=1), **args)
    assert second['batches'] != first['batches']
    assert not set(seeds) & {seed for _, seed in second['seeds']}


def test_global_losses_of_some_images(steps):
    """Each slot of the batch has its turn."""
    found = steps(iters=5, losses=LOSSES, global_every=3)
    assert found['factors'] == [3, 0, 0, 0, 0, 3, 3, 0, 0, 0] * 6


def test_gradients_of_two_ranks_add_up(monkeypatch):
    """Penalty and loss together are those of one rank."""

    def look(trainer, *_):
        everything = trainer.samples

        def slope(shares, batch=(0, 1, 2, 3), progress=0.9):
            learners = [AdaRound(reg=0.3), LearnedSteps()]
            groups = []
            for one in learners:
                acts = trainer.view.layers[f'{BLOCK}.conv1'].act_quantizers
                groups += one.start(
                    trainer.view.layers, list(acts.values()), 100
                )
            parameters = [p for g in groups for p in g['params']]
            with monkeypatch.context() as patch:
                patch.setattr(module, 'get_world_size', lambda: len(shares))
                patch.setattr(module, 'all_reduce', lambda _: None)
                for share in shares:
                    trainer.samples = {j: everything[j] for j in share}
                    trainer.step(learners, list(batch), progress, 2, 5)
            trainer.samples = everything
            grads = [
                torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for p in parameters
            ]
            # the penalty by itself, of what AdaRound learns
            if progress:
                with torch.enable_grad():
                    value = learners[0].penalty(progress)
                    grads += torch.autograd.grad(value, parameters[:-1])
            for one in learners:
                one.harden()
            # or the next start would be from what this one has rounded
            for layer in trainer.view.layers.values():
                layer.forget_rounding()
            return grads

        one = slope([range(4)])
        two = slope([(0, 2), (1, 3)])
        for a, b in zip(one, two, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
        # without images the penalty is left, at the start there is none
        without = slope([()])
        assert torch.equal(without[0], without[3]) and without[0].any()
        first, second, both = (slope([b], b, 0) for b in ([0], [1], [0, 1]))
        for a, b, mean in zip(first, second, both, strict=True):
            torch.testing.assert_close((a + b) / 2, mean, rtol=1e-4, atol=1e-7)

    inside(look, drop_prob=0.5)


def test_nan_on_the_held_out_images_is_put_back():
    """Also where a unit that got worse would stay."""
    losses = cycle([1.0, float('nan')])

    class Breaking(Trainer):
        def loss_on(self, chosen):
            return next(losses)

    model, session = reconstruct(iters=3, revert=False, trainer=Breaking)
    assert {r.why for r in session.records} == {'the loss became NaN or Inf'}
    assert not any(r.kept or r.after for r in session.records)
    assert equal(model, reconstruct(iters=0)[0])


def test_nothing_to_learn_is_said():
    """A uniform grid has no codebook."""
    _, session = reconstruct(learn=[dict(type='LearnedCodebook')], iters=2)
    assert {r.why for r in session.records} == {'it has no learnable part'}
    assert not any(r.kept for r in session.records)


def test_ends_that_became_nan_are_put_back():
    """The loss is finite, its slope is not: the next step sees it."""

    class Steep(L2Loss):
        def __call__(self, outputs, targets, weights):
            loss = super().__call__(outputs, targets, weights)
            return loss + (outputs[0].sum() * 0).sqrt()

    LOSSES_REGISTRY.register_module(module=Steep)
    try:
        learn = [dict(type='LearnedWeights')]
        model, session = reconstruct(
            iters=3, learn=learn, losses=[dict(type='Steep')]
        )
    finally:
        LOSSES_REGISTRY.module_dict.pop('Steep')
    assert {r.why for r in session.records} == {'the loss became NaN or Inf'}
    assert equal(model, reconstruct(iters=0)[0])


def test_a_loss_that_is_noticed_late(monkeypatch):
    """A GPU is asked seldom; what is kept of the unit is the same."""

    class Breaking(Trainer):
        def step(self, learners, batch, progress, k, it):
            value = super().step(learners, batch, progress, k, it)
            return value * float('nan') if it == 7 else value

    at_once = reconstruct(iters=30, trainer=Breaking)
    # as many as a GPU is asked after; 30 steps are less than that
    monkeypatch.setattr(module, 'look_after', lambda _: module.LOOK)
    late = reconstruct(iters=30, trainer=Breaking)
    assert equal(at_once[0], late[0])
    for one, other in zip(at_once[1].records, late[1].records, strict=True):
        assert one.why == other.why == 'the loss became NaN or Inf'
        assert one.curve == other.curve and len(one.curve) == 7


@pytest.mark.parametrize(
    'args',
    [
        dict(drop_prob=0.5),
        dict(losses=LOSSES, global_every=2),
        dict(losses=LOSSES, drop_prob=0.5, separate_global=True),
        dict(losses=[dict(type='FisherLoss'), LOSSES[1]], drop_prob=0.5),
    ],
    ids=['qdrop', 'every', 'separate', 'fisher'],
)
def test_all_that_a_step_fetches_is_announced(args, monkeypatch):
    """In the step before; of the first step nothing can be."""
    announced, fetched, missing = [[], []], [], []
    fetch, prefetch = ActivationCache.fetch, ActivationCache.prefetch

    def noted_fetch(self, tree):
        fetched.extend(map(id, entries(tree)))
        return fetch(self, tree)

    def noted_prefetch(self, tree):
        announced.append(list(map(id, entries(tree))))
        return prefetch(self, tree)

    monkeypatch.setattr(ActivationCache, 'fetch', noted_fetch)
    monkeypatch.setattr(ActivationCache, 'prefetch', noted_prefetch)

    class Noting(Trainer):
        def step(self, learners, batch, progress, k, it):
            fetched.clear()
            value = super().step(learners, batch, progress, k, it)
            if it:
                missing.append(set(fetched) - set(announced[-2]))
            return value

    _, session = reconstruct(iters=4, trainer=Noting, **args)
    assert len(missing) == 3 * len(session.records) and not any(missing)


def entries(tree):
    return [e for e in tree_leaves(tree) if size_of(e)]


LEARNING = (
    'adaquant',
    'adaround',
    'brecq',
    'pd_quant',
    'qdrop',
    'reg_ptq',
    'subsetq',
)
#: what raises on a GPU in deterministic mode, as PyTorch lists it
RAISES = {
    'adaptive_avg_pool2d_backward',
    '_adaptive_avg_pool2d_backward',
    'adaptive_max_pool2d_backward',
    'bincount',
    'cumsum',
    'grid_sampler_2d_backward',
    'histc',
    'kthvalue',
    'median',
    'nll_loss2d_forward',
    'put_',
    'reflection_pad2d_backward',
    'upsample_bicubic2d_backward',
    'upsample_bilinear2d_backward',
    'upsample_linear1d_backward',
}


class Names(TorchDispatchMode):
    """Names of all operators that run, backward too."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('recipe', LEARNING)
def test_a_step_stays_on_its_device(recipe):
    """The float model crosses at its beginning alone, a step nowhere."""
    counts, names = [], set()

    class Counting(Trainer):
        def step(self, *args):
            torch.use_deterministic_algorithms(True)
            try:
                with crossings() as found, Names() as ran:
                    value = super().step(*args)
            finally:
                torch.use_deterministic_algorithms(False)
            counts.append(dict(found))
            names.update(ran.found)
            return value

    parts = load_recipe(recipe)
    if recipe == 'reg_ptq':  # this network has no role of a head
        weight = dict(type='LLAQuantizer', granularity='channel')
        parts['rules'].append(dict(match='tower', weight=weight))
    for one in parts['passes']:
        if one['type'] != 'Reconstruct':
            continue
        args = {k: v for k, v in one.items() if k != 'type'}
        if 'distribution_correction' in args:
            args['distribution_correction'] = dict(iters=1)
        reconstruct(
            data=batches(3),
            bits='w4a4',
            rules=parts['rules'],
            trainer=Counting,
            **dict(args, iters=2),
        )
    assert counts and not any(counts)
    assert 'convolution_backward' in names
    assert not names & RAISES
