# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a unit sees while it is learned, looked at from inside the pass."""

import weakref
from itertools import cycle
from types import SimpleNamespace

import pytest
import torch
from reconstruct_model import (
    RULES,
    Block,
    Net,
    batches,
    equal,
    reconstruct,
)
from torch import nn
from torch.nn import functional
from torch.utils._pytree import tree_flatten

from mmdet_ptq import registry
from mmdet_ptq.calibration import samples
from mmdet_ptq.calibration.samples import size_of
from mmdet_ptq.context import current, images
from mmdet_ptq.errors import NumericError
from mmdet_ptq.layers import convert, float_mode
from mmdet_ptq.losses import GlobalLoss
from mmdet_ptq.passes.reconstruct import AdaRound, LearnedSteps
from mmdet_ptq.passes.reconstruct import trainer as module
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.records import UnitRecord

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
            return UnitRecord(self.view.name, 0.0, 0.0, True)

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
        (target,) = fetch(sample.targets)
        with torch.no_grad():
            plain = Net().eval().backbone[2]
            torch.testing.assert_close(plain(exact[0][0].clone()), target)
        # a prefix that is quantized changes what comes in
        assert not torch.equal(quantized[0][0], exact[0][0])
        with torch.no_grad():
            plain = mean_square(trainer, 0, quantized)
            with float_mode(trainer.session.model, weight=False):
                dropped = mean_square(trainer, 0, exact)
            assert plain > 1.1 * dropped > 0
            assert float(trainer.loss(0)) == pytest.approx(plain)
            seeded = torch.Generator().manual_seed(0)
            found = float(trainer.loss(0, 1.0, seeded))
            assert found == pytest.approx(dropped)
            half = [
                float(trainer.loss(0, 0.5, torch.Generator().manual_seed(i)))
                for i in (0, 1, 0)
            ]
        assert half[0] == half[2] != half[1]
        mixed = trainer.inputs(sample, 0, 0.5, seeded)[0][0]
        kept = mixed == quantized[0][0]
        assert bool((kept | (mixed == exact[0][0])).all())
        differ = quantized[0][0] != exact[0][0]
        assert 0.4 < float(kept[differ].float().mean()) < 0.6
        assert dropped < half[0] < plain
        # nothing of it stays behind
        for layer in trainer.view.layers.values():
            assert layer.drop_prob == 0 and layer.generator is None

    inside(look, drop_prob=0.5)


@pytest.mark.parametrize('inputs', ['quantized', 'float'])
@pytest.mark.parametrize('activations', [True, False])
def test_what_is_quantized(inside, inputs, activations):
    """The units before if inputs are, this one, and none after it."""
    before, own = {'backbone.0'}, {f'{BLOCK}.conv1', f'{BLOCK}.conv2'}

    def look(trainer, *_):
        sample = trainer.samples[0]
        ((args, _),) = trainer.images.cache.fetch(sample.inputs)
        layers = trainer.session.layers
        weights = {n for n, m in layers.items() if m.quantize_weight}
        acts = {n for n, m in layers.items() if m.quantize_act}
        expected = own | (before if inputs == 'quantized' else set())
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
        wanted = quantized if inputs == 'quantized' else exact
        torch.testing.assert_close(args[0], wanted)
        assert not torch.allclose(quantized, exact)

    inside(look, input_distribution=inputs, activations=activations)


class Shared(Net):
    """Both convolutions of the neck read the same tensor."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        fine, coarse = self.neck[0](x), self.neck[1](x)[..., ::2, ::2]
        return [self.out(self.tower(f).relu()) for f in (fine, coarse)]


def test_a_shared_range_is_that_of_the_first_unit(inside, monkeypatch):
    monkeypatch.setattr('reconstruct_model.Net', Shared)

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
    assert found['neck.0'][1] == found['neck.1'][1]
    assert len(found['neck.0'][0]) == 1 and not found['neck.1'][0]


class Upwards(Net):
    """The head is done with the coarse level before the fine one starts."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        coarse = 20 * self.neck[1](x[..., ::2, ::2])
        coarse = self.out(self.tower(coarse).relu())
        return coarse, self.out(self.tower(self.neck[0](x)).relu())


@pytest.fixture
def levels(monkeypatch):
    """Each pyramid level has its own ranges, by a factor of about 20."""
    rules = [*RULES, dict(match='*', act=dict(per_level=True))]
    monkeypatch.setattr('reconstruct_model.Net', Upwards)
    monkeypatch.setattr('reconstruct_model.RULES', rules)


def test_levels_of_a_unit_called_alone(inside, levels):
    """The convolution by hand, with the range of each level, and its ReLU."""

    def look(trainer, *_):
        layer = trainer.view.layers['tower']
        quantizer = layer.act_quantizers['input']
        assert quantizer.scale[0, 0] > 5 * quantizer.scale[1, 0]
        total = count = 0
        sample, fetch = trainer.samples[1], trainer.images.cache.fetch
        assert sample.levels == [{'tower': 0}, {'tower': 1}]
        targets = fetch(sample.targets)
        with torch.no_grad():
            operands = layer.operands()
            weight = operands['weight']
            bias = operands.get('bias', layer.bias)
            for i, ((x,), _) in enumerate(fetch(sample.inputs)):
                y = functional.conv2d(quantizer(x, i), weight, bias, padding=1)
                error = (y.relu() - targets[i]).square().sum(1)
                total, count = total + error.sum(), count + error.numel()
            for level in (0, 1):
                # wherever it was left
                current().set_level(layer, level)
                found = float(trainer.loss(1))
                assert found == pytest.approx(float(total / count))

    inside(look, only='tower')


@pytest.mark.parametrize('inputs', ['quantized', 'float'])
def test_number_of_images_of_a_unit_called_alone(inside, inputs):
    seen = []

    def look(trainer, *_):
        (layer,) = trainer.view.layers.values()
        with layer.listening(lambda *_: seen.append(images())):
            trainer.images.run(0)
            together = len(seen)
            trainer.loss(0)
        assert seen == [1] * len(seen) and 0 < together < len(seen)

    inside(look, only='tower', input_distribution=inputs)


LOSSES = [dict(type='L2Loss'), dict(type='DetectionLoss')]


def test_replaying_is_running(inside, levels):
    """Also where a head is replayed at its first level only."""

    def look(trainer, *_):
        skipped = set(trainer.replay.keys)
        with torch.no_grad():
            for j in (0, 1):
                expected = trainer.images.run(j)
                seen = []
                found = trainer.replayed(j, seen=seen)
                for a, b in zip(flat(found), flat(expected), strict=True):
                    assert torch.equal(a, b)
                assert seen
        return skipped

    found = inside(look, only=None, losses=LOSSES)
    assert ('tower', 0) in found['neck.0']
    assert ('tower', 1) not in found['neck.0']
    assert ('backbone', 0) in found['tower']


class Adding(Net):
    """Adds one convolution of the neck onto the other, in place."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        y, more = self.neck[0](x), self.neck[1](-x)
        y += more
        return [self.out(self.tower(y).relu())]


@pytest.mark.parametrize('unit', ['neck.0', 'neck.1'])
def test_replayed_tensors_may_be_written_to(inside, monkeypatch, unit):
    """As residual blocks do, whose ``+=`` hits what stands before it."""
    monkeypatch.setattr('reconstruct_model.Net', Adding)

    def look(trainer, *_):
        if unit == 'neck.1':
            assert ('neck.0', 0) in trainer.replay.keys
        layer = trainer.view.layers[unit]
        weight = layer.weight.requires_grad_()
        (inputs,) = trainer.images.cache.fetch(trainer.samples[0].inputs)
        for _ in range(2):
            with torch.enable_grad():
                seen = []
                (expected,) = flat(trainer.images.run(0))
                (found,) = flat(trainer.replayed(0, seen=seen))
                assert torch.equal(found, expected)
                # the output as the unit gave it
                assert torch.equal(seen[0], layer(*inputs[0]))
                assert torch.autograd.grad(found.sum(), weight)[0].any()
        weight.requires_grad_(False)

    inside(look, only=unit, unit='layer', losses=LOSSES)


class Eager(Block):
    """Begins with a ReLU that writes to what comes in."""

    def forward(self, x):
        x = self.relu(x)
        return self.conv2(self.relu(self.conv1(x))) + x


class Unactivated(Net):
    def __init__(self):
        super().__init__()
        self.backbone[1], self.backbone[2] = nn.Identity(), Eager()


def test_a_unit_leaves_its_cached_inputs(inside, monkeypatch):
    monkeypatch.setattr('reconstruct_model.Net', Unactivated)

    def look(trainer, *_):
        fetch, sample = trainer.images.cache.fetch, trainer.samples[0]
        held = [sample.inputs, sample.exact]
        before = [t.clone() for t in flat(fetch(held))]
        assert all((t < 0).any() for t in before)
        for rate in (1.0, 0.5):
            trainer.loss(0, rate, torch.Generator().manual_seed(0))
        for ours, theirs in zip(flat(fetch(held)), before, strict=True):
            assert torch.equal(ours, theirs)
        return True

    assert inside(look, drop_prob=0.5)


def flat(outputs):
    found = [t for t in tree_flatten(outputs)[0] if torch.is_tensor(t)]
    assert found
    return found


def test_global_gradient_reaches_the_unit_alone(inside):
    """Replayed or run as a whole; no other parameter gets one."""

    def look(trainer, learners, acts, k):
        model, layers = trainer.session.model, trainer.view.layers
        (target,) = trainer.images.targets(0)
        groups = [g for o in learners for g in o.start(layers, acts, 100)]
        mine = [p for g in groups for p in g['params']]
        assert len(mine) == len(layers) + len(acts)
        for run in (trainer.replayed, trainer.images.run):
            for p in (*mine, *model.parameters()):
                p.grad = None
            with torch.enable_grad():
                trainer.whole[0](run(0), target).backward()
            assert all(p.grad is not None and p.grad.any() for p in mine)
            found = {id(p) for p in model.parameters() if p.grad is not None}
            assert found <= {id(p) for p in mine}
        for one in learners:
            one.harden()
        return True

    learn = [dict(type='AdaRound'), dict(type='LearnedSteps')]
    args = dict(losses=[dict(type='DetectionLoss')], learn=learn)
    assert len(inside(look, only=None, **args)) == 6


@pytest.mark.parametrize('separate', [False, True])
def test_global_loss_sees_the_mixture_or_not(inside, separate):
    def look(trainer, *_):
        local, whole = trainer.local[0], trainer.whole[0]
        sample = trainer.samples[0]
        fetch = trainer.images.cache.fetch
        (exact,) = fetch(sample.exact)
        (target,) = trainer.images.targets(0)
        layers = trainer.view.layers.values()

        def by_hand(dropped):
            """The whole forward; float input and activations in the unit."""
            for layer in layers:
                layer.switch(weight=True, act=not dropped)
            outputs = []
            with trainer.view.watching(
                lambda i, _, y: outputs.append(y),
                lambda i, inputs: exact if dropped else inputs,
            ):
                value = whole(trainer.images.run(0), target)
            for layer in layers:
                layer.switch(weight=True, act=True)
            return float(value), float(local(outputs, targets, None))

        targets = fetch(sample.targets)
        seeded = torch.Generator().manual_seed(0)
        with torch.no_grad():
            kept, dropped = by_hand(False), by_hand(True)
            assert kept[0] > 1.05 * dropped[0] and kept[1] > dropped[1]
            assert float(trainer.loss(0)) == pytest.approx(sum(kept))
            found = float(trainer.loss(0, 1.0, seeded))
        expected = dropped[1] + (kept if separate else dropped)[0]
        assert found == pytest.approx(expected)

    inside(look, losses=LOSSES, separate_global=separate, drop_prob=0.5)


@pytest.fixture
def marked():
    """A global loss that knows its own targets."""

    class Marked(GlobalLoss):
        def targets(self, outputs):
            return [torch.tensor(7.0)]

        def __call__(self, outputs, targets):
            assert float(targets[0]) == 7
            return sum(t.square().sum() for t in flat(outputs))

    registry.LOSSES.register_module(module=Marked)
    yield dict(type='Marked')
    registry.LOSSES.module_dict.pop('Marked')


def test_fisher_weights_of_a_unit(inside, marked):
    """The gradient by hand, of the quantized detector, for each image."""

    def look(trainer, *_):
        gradients = []
        for j in trainer.images.mine:
            leaves = []

            def cut(_, __, y, leaves=leaves):
                leaves.append(y.detach().requires_grad_())
                return leaves[-1]

            with torch.enable_grad(), trainer.view.watching(cut):
                value = sum(
                    t.square().sum() for t in flat(trainer.images.run(j))
                )
                gradients += torch.autograd.grad(value, leaves)
        squares = [g.double().square() for g in gradients]
        mean = sum(float(s.sum()) for s in squares)
        mean /= sum(s.numel() for s in squares)
        for j, square in zip(trainer.images.mine, squares, strict=True):
            weights = trainer.images.cache.fetch(trainer.samples[j].weights)
            torch.testing.assert_close(
                weights[0], (square / mean).float(), rtol=1e-3, atol=1e-6
            )
            # and it is what the squared errors are multiplied by
            with torch.no_grad():
                (target,) = trainer.images.cache.fetch(
                    trainer.samples[j].targets
                )
                (inputs,) = trainer.images.cache.fetch(
                    trainer.samples[j].inputs
                )
                (y,) = trainer.view(trainer.samples[j].levels[0], inputs)
                local = (weights[0] * (y - target) ** 2).sum(1).mean()
                trainer.whole.clear()
                found = float(trainer.loss(j))
            assert found == pytest.approx(float(local))

    losses = [dict(type='DetectionLoss'), dict(type='FisherLoss', of=marked)]
    inside(look, losses=losses)


def test_gradients_of_one_image_at_a_time(inside, marked, monkeypatch):
    """Those of all images might not fit into memory."""
    original, made = torch.autograd.grad, []

    def grad(*args, **kwargs):
        # that of the image before is still a variable somewhere
        assert not any(g() is not None for one in made[:-1] for g in one)
        found = original(*args, **kwargs)
        made.append([weakref.ref(g) for g in found])
        return found

    monkeypatch.setattr(torch.autograd, 'grad', grad)

    def look(trainer, *_):
        assert len(made) == len(trainer.images.mine) > 2
        made.clear()

    inside(look, only=None, losses=[dict(type='FisherLoss', of=marked)])


def test_cache_holds_one_unit(inside):
    """What earlier units left there is gone."""

    def look(trainer, *_):
        cache = trainer.images.cache
        held = [s.entries() for s in trainer.samples.values()]
        expected = size_of([held, list(trainer.images._kept.values())])
        assert cache.in_memory + cache.on_disk == expected > 0

    inside(look, only=None, losses=LOSSES, drop_prob=0.5)


def test_float_overflow_in_a_unit_is_told(monkeypatch):
    """No quantizer reads what the last convolution gives."""

    class Overflowing(Net):
        def __init__(self):
            super().__init__()
            self.tower.bias.data[0] = float('inf')

    monkeypatch.setattr('reconstruct_model.Net', Overflowing)
    init = [
        dict(type='FoldBatchNorm'),
        dict(type='Observe'),
        dict(type='SetRanges'),
    ]
    with pytest.raises(NumericError, match=r'tower.* image 0'):
        reconstruct(iters=1, init=init)


def test_images_of_a_rank(monkeypatch):
    """Numbers go round the ranks, unreadable images have none."""
    monkeypatch.setattr(samples, 'get_rank', lambda: 1)
    monkeypatch.setattr(samples, 'get_world_size', lambda: 3)
    monkeypatch.setattr(
        samples, 'all_gather_object', lambda mine: [[0, 3], mine, [8, 2]]
    )
    monkeypatch.setattr(
        samples.Images, '_prepare', lambda self, data, losses: data
    )
    feed = SimpleNamespace(total=4, batch=lambda i: None if i == 2 else 'x')
    session = SimpleNamespace(
        model=nn.Identity(), feed=feed, progress=lambda *_: None
    )
    images = samples.Images(session, None, None, [])
    assert images.mine == [1, 4, 10]
    assert images.everyone == [0, 1, 2, 3, 4, 8, 10]


def test_a_forward_starts_at_the_first_level():
    """An adapter calls parts of the detector, which resets nothing."""
    model = nn.Sequential(nn.Linear(2, 2))
    convert(model)
    model[0].attach(levels=4)
    current().set_level(model[0], 3)
    feed = SimpleNamespace(total=0)
    session = SimpleNamespace(model=model, feed=feed)
    images = samples.Images(session, None, None, [])
    images._inputs = lambda j: (({}, None), [])
    images.adapter = SimpleNamespace(
        outputs=lambda *_: current().next_level(model[0], 4)
    )
    assert images.run(0) == 0


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
    found = dict(batches=[], seeds=[], rates=[], factors=[])
    loss, step, adam = Trainer.loss, Trainer.step, torch.optim.Adam.step

    def noted_loss(self, j, drop_prob=0.0, generator=None, factor=1):
        if generator is not None:
            key = self.view.name, len(found['batches']), j
            found['seeds'].append((key, generator.initial_seed()))
            found['factors'].append(factor)
        return loss(self, j, drop_prob, generator, factor)

    def noted_step(self, learners, batch, *args):
        found['batches'].append((self.view.name, batch))
        return step(self, learners, batch, *args)

    def noted_adam(self, *args, **kwargs):
        found['rates'].append([g['lr'] for g in self.param_groups])
        return adam(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, 'loss', noted_loss)
    monkeypatch.setattr(Trainer, 'step', noted_step)
    monkeypatch.setattr(torch.optim.Adam, 'step', noted_adam)
    return found


def test_steps_of_a_run(steps):
    learn = [dict(type='AdaRound', lr=0.1), dict(type='LearnedSteps', lr=0.2)]
    args = dict(learn=learn, iters=4, data=batches(8), drop_prob=0.5)
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


def test_global_losses_of_some_images(steps):
    """Each slot of the batch has its turn."""
    reconstruct(iters=5, losses=LOSSES, global_every=3)
    assert steps['factors'] == [3, 0, 0, 0, 0, 3, 3, 0, 0, 0] * 6


def test_factor_of_the_global_loss(inside):
    """Linear in the factor; at 0 nothing after the unit is run."""

    def look(trainer, *_):
        with torch.no_grad():
            unit = trainer.loss(0, factor=0)
            once, thrice = (trainer.loss(0, factor=m) for m in (1, 3))
            assert once > 1.05 * unit > 0
            torch.testing.assert_close(thrice - unit, 3 * (once - unit))
            trainer.replayed = None
            assert torch.equal(trainer.loss(0, factor=0), unit)

    loud = dict(type='DetectionLoss', weight=100.0)
    inside(look, losses=[dict(type='L2Loss'), loud])


def test_gradients_of_two_ranks_add_up(inside, monkeypatch):
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


def test_nan_on_the_held_out_images_is_put_back(monkeypatch):
    """Also where a unit that got worse would stay."""
    losses = cycle([1.0, float('nan')])
    monkeypatch.setattr(Trainer, 'loss_on', lambda *_: next(losses))
    model, session = reconstruct(iters=3, revert=False)
    assert {r.why for r in session.records} == {'the loss became NaN or Inf'}
    assert not any(r.kept or r.after for r in session.records)
    assert equal(model, reconstruct(iters=0)[0])


def test_nothing_to_learn_is_said():
    """A uniform grid has no codebook."""
    _, session = reconstruct(learn=[dict(type='LearnedCodebook')], iters=2)
    assert {r.why for r in session.records} == {'it has no learnable part'}
    assert not any(r.kept for r in session.records)


def test_float_model_is_left_as_it_was():
    model, session = reconstruct(iters=2, input_distribution='float')
    plain = Net().eval()
    for layer in session.layers.values():
        assert layer.quantize_weight and layer.quantize_act
    assert all(p.requires_grad for p in model.parameters())
    assert [m.inplace for m in model.modules() if hasattr(m, 'inplace')] == [
        m.inplace for m in plain.modules() if hasattr(m, 'inplace')
    ]
