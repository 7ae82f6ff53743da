# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a unit sees while it is learned, looked at from inside the pass."""

import pytest
import torch
from reconstruct_model import Net, batches, reconstruct
from torch.nn import functional

from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct import AdaRound, LearnedSteps
from mmdet_ptq.passes.reconstruct import trainer as module
from mmdet_ptq.passes.reconstruct.trainer import Trainer

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
BLOCK = 'backbone.2'


@pytest.fixture
def inside(monkeypatch):
    """Calls a function where a unit would be learned; nothing is learned."""

    def run(look, only=BLOCK, **args):
        found = {}

        def fit(self, learners, acts, k):
            if only in (None, self.view.name):
                found[self.view.name] = look(self, learners, acts, k)
            return dict(unit=self.view.name)

        monkeypatch.setattr(Trainer, 'fit', fit)
        reconstruct(**args)
        assert found
        return found if only is None else found[only]

    return run


def mean_square(trainer, j, inputs):
    """The loss of a unit of one call on these inputs, by hand."""
    sample = trainer.samples[j]
    (target,) = trainer.images.cache.fetch(sample.targets)
    (found,) = trainer.view(sample.levels[0], inputs)
    return float((found - target).square().sum(1).mean())


def test_quantized_inputs_and_activations_are_mixed(inside):
    """Rates 1 and 0 are worked out by hand, one half lies off both."""

    def look(trainer, *_):
        fetch, sample = trainer.images.cache.fetch, trainer.samples[0]
        (quantized,), (exact,) = fetch(sample.inputs), fetch(sample.exact)
        # a prefix that is quantized changes what comes in
        assert not torch.equal(quantized[0][0], exact[0][0])
        with torch.no_grad():
            plain = mean_square(trainer, 0, quantized)
            with float_mode(trainer.session.model, weight=False):
                dropped = mean_square(trainer, 0, exact)
            assert plain > 1.1 * dropped > 0
            assert float(trainer.loss(0)) == pytest.approx(plain)
            seeded = torch.Generator().manual_seed(0)
            found = float(trainer.loss(0, 0.0, seeded))
            assert found == pytest.approx(dropped)
            half = [
                float(trainer.loss(0, 0.5, torch.Generator().manual_seed(i)))
                for i in (0, 1, 0)
            ]
        assert half[0] == half[2] != half[1]
        assert dropped < half[0] < plain
        # nothing of it stays behind
        for layer in trainer.view.layers.values():
            assert layer.keep_rate == 1 and layer.generator is None

    inside(look, keep_rate=0.5)


@pytest.mark.parametrize('asymmetric', [True, False])
@pytest.mark.parametrize('activations', [True, False])
def test_what_is_quantized(inside, asymmetric, activations):
    """The units before if asymmetric, this one, and none after it."""
    before, own = {'backbone.0'}, {f'{BLOCK}.conv1', f'{BLOCK}.conv2'}

    def look(trainer, *_):
        sample = trainer.samples[0]
        ((args, _),) = trainer.images.cache.fetch(sample.inputs)
        layers = trainer.session.layers
        weights = {n for n, m in layers.items() if m.quantize_weight}
        acts = {n for n, m in layers.items() if m.quantize_act}
        expected = own | (before if asymmetric else set())
        assert weights == expected
        assert acts == (expected if activations else set())
        first = layers['backbone.0']
        x = torch.stack(batches()[0]['inputs'])
        with torch.no_grad(), float_mode(trainer.session.model):
            exact = first(x).relu()
            if activations:
                x = first.act_quantizers['input'](x)
            weight, bias = first.quantized_weight(), first.bias
            if first.bias_shift is not None:
                bias = bias + first.bias_shift
            quantized = functional.conv2d(x, weight, bias, padding=1).relu()
        wanted = quantized if asymmetric else exact
        torch.testing.assert_close(args[0], wanted)
        assert not torch.allclose(quantized, exact)

    inside(look, asymmetric=asymmetric, activations=activations)


def test_a_shared_range_is_that_of_the_first_unit(inside):
    def look(trainer, learners, acts, k):
        mine = {
            id(q)
            for layer in trainer.view.layers.values()
            for q in layer.act_quantizers.values()
        }
        assert {id(q) for q in acts} <= mine
        return [id(q) for q in acts], mine

    found = inside(look, only=None)
    given = [q for acts, _ in found.values() for q in acts]
    assert len(set(given)) == len(given)
    assert set(given) == set().union(*(mine for _, mine in found.values()))
    # what the block gives goes into both convolutions of the neck
    assert found['neck.0'][1] == found['neck.1'][1]
    assert len(found['neck.0'][0]) == 1 and not found['neck.1'][0]


@pytest.mark.parametrize(
    ('holdout', 'held'),
    [(0.125, [7, 15]), (0.25, [3, 7, 11, 15]), (0.9, list(range(1, 16, 2)))],
)
def test_held_out_images_are_not_learned_from(inside, holdout, held):
    def look(trainer, *_):
        train, found = trainer.split()
        assert found == held
        assert train == [j for j in range(16) if j not in held]

    inside(look, holdout=holdout)


def test_few_images_to_hold_out(inside):
    def look(trainer, *_):
        return trainer.split()

    assert inside(look, holdout=0.0, data=batches(3)) == ([0, 1, 2],) * 2
    assert inside(look, data=batches(3)) == ([0, 1], [2])
    assert inside(look, data=batches(1)) == ([0], [0])


@pytest.fixture
def steps(monkeypatch):
    """Notes every step: images, seeds, and rate of every group."""
    found = dict(batches=[], seeds=[], rates=[])
    loss, step, adam = Trainer.loss, Trainer._step, torch.optim.Adam.step

    def noted_loss(self, j, rate=1.0, generator=None):
        if generator is not None:
            key = self.view.name, len(found['batches']), j
            found['seeds'].append((key, generator.initial_seed()))
        return loss(self, j, rate, generator)

    def noted_step(self, learners, batch, *args):
        found['batches'].append((self.view.name, batch))
        return step(self, learners, batch, *args)

    def noted_adam(self, *args, **kwargs):
        found['rates'].append([g['lr'] for g in self.param_groups])
        return adam(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, 'loss', noted_loss)
    monkeypatch.setattr(Trainer, '_step', noted_step)
    monkeypatch.setattr(torch.optim.Adam, 'step', noted_adam)
    return found


def test_steps_of_a_run(steps):
    learn = [dict(type='AdaRound', lr=0.1), dict(type='LearnedSteps', lr=0.2)]
    args = dict(learn=learn, iters=4, data=batches(8), keep_rate=0.5)
    reconstruct(**args)
    # image 7 is held out
    drawn = [j for _, batch in steps['batches'] for j in batch]
    assert set(drawn) == set(range(7))
    assert all(len(batch) == 2 for _, batch in steps['batches'])
    # each mask is one of its own
    seeds = [seed for _, seed in steps['seeds']]
    assert len(seeds) == len(set(seeds)) == 6 * 4 * 2
    # units see the images in different orders
    orders = {}
    for name, batch in steps['batches']:
        orders.setdefault(name, []).extend(batch)
    assert len({tuple(order) for order in orders.values()}) > 1
    # rounding keeps its rate, the steps fall along a cosine
    first = steps['rates'][:4]
    assert [group[-1] for group in first] == [0.1] * 4
    falling = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]
    assert [group[0] for group in first] == pytest.approx(
        [0.2 * share for share in falling]
    )
    # another seed: other images, other masks
    drawn_before = list(steps['batches'])
    for noted in steps.values():
        noted.clear()
    reconstruct(calibration=dict(seed=1), **args)
    assert steps['batches'] != drawn_before
    assert not set(seeds) & {seed for _, seed in steps['seeds']}


def test_gradients_of_two_ranks_add_up(inside, monkeypatch):
    """Penalty and loss together are those of one rank."""

    def look(trainer, *_):
        everything = trainer.samples

        def slope(shares):
            learners = [AdaRound(reg=0.3), LearnedSteps()]
            groups = []
            for one in learners:
                acts = trainer.view.layers[f'{BLOCK}.conv1'].act_quantizers
                groups += one.start(
                    trainer.view.layers, list(acts.values()), 100
                )
            # V away from where it started, so that the penalty has a slope
            parameters = [p for g in groups for p in g['params']]
            monkeypatch.setattr(module, 'get_world_size', lambda: len(shares))
            monkeypatch.setattr(module, 'all_reduce', lambda _: None)
            for share in shares:
                trainer.samples = {j: everything[j] for j in share}
                trainer._step(learners, [0, 1, 2, 3], 0.9, 2, 5)
            trainer.samples = everything
            grads = [p.grad.clone() for p in parameters]
            monkeypatch.undo()
            for one in learners:
                one.harden()
            return grads

        one = slope([range(4)])
        two = slope([(0, 2), (1, 3)])
        for a, b in zip(one, two, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)

    inside(look, keep_rate=0.5)


def test_nothing_to_learn_is_said():
    """A uniform grid has no codebook."""
    _, session = reconstruct(learn=[dict(type='LearnedCodebook')], iters=2)
    assert {r['why'] for r in session.records} == {'it has no learnable part'}
    assert not any(r['kept'] for r in session.records)


def test_float_model_is_left_as_it_was():
    model, _ = reconstruct(iters=2)
    plain = Net().eval()
    assert all(p.requires_grad for p in model.parameters())
    assert [m.inplace for m in model.modules() if hasattr(m, 'inplace')] == [
        m.inplace for m in plain.modules() if hasattr(m, 'inplace')
    ]
