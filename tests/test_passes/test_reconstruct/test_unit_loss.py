# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The losses of a unit, looked at from inside the pass."""

import pytest
import torch
from reconstruct_model import (
    LEARN,
    LOSSES,
    RULES,
    Block,
    Net,
    flat,
    inside,
    reconstruct,
)
from seeded import seeded
from torch import nn
from torch.nn import functional

from mmdet_ptq.context import current, images
from mmdet_ptq.layers import float_mode

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def mean_square(trainer, j, inputs):
    """The loss of a unit of one call on these inputs, by hand."""
    sample = trainer.samples[j]
    (target,) = trainer.images.cache.fetch(sample.targets)
    (found,) = trainer.view(sample.levels[0], inputs)
    return float((found - target).square().sum(1).mean())


def test_quantized_inputs_and_activations_are_mixed():
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
            found = float(trainer.loss(0, 1.0, seeded(0)))
            assert found == pytest.approx(dropped)
            half = [float(trainer.loss(0, 0.5, seeded(i))) for i in (0, 1, 0)]
        assert half[0] == half[2] != half[1]
        mixed = trainer.inputs(sample, 0, 0.5, seeded(0))[0][0]
        kept = mixed == quantized[0][0]
        assert bool((kept | (mixed == exact[0][0])).all())
        differ = quantized[0][0] != exact[0][0]
        assert 0.4 < float(kept[differ].float().mean()) < 0.6
        assert dropped < half[0] < plain
        # nothing of it stays behind
        for layer in trainer.view.layers.values():
            assert layer.drop_prob == 0 and layer.generator is None

    inside(look, drop_prob=0.5)


class Upwards(Net):
    """The head is done with the coarse level before the fine one starts."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        coarse = 20 * self.neck[1](x[..., ::2, ::2])
        coarse = self.out(self.tower(coarse).relu())
        return coarse, self.out(self.tower(self.neck[0](x)).relu())


#: each pyramid level has its own ranges, by a factor of about 20
LEVELS = dict(
    net=Upwards, rules=[*RULES, dict(match='*', act=dict(per_level=True))]
)


def test_levels_of_a_unit_called_alone():
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
                current().set_level(layer.call_key, level)
                found = float(trainer.loss(1))
                assert found == pytest.approx(float(total / count))

    inside(look, only='tower', **LEVELS)


@pytest.mark.parametrize('inputs', ['quantized', 'float'])
def test_number_of_images_of_a_unit_called_alone(inputs):
    seen = []

    def look(trainer, *_):
        (layer,) = trainer.view.layers.values()
        with layer.listening(lambda *_: seen.append(images())):
            trainer.images.run(0)
            together = len(seen)
            trainer.loss(0)
        assert seen == [1] * len(seen) and 0 < together < len(seen)

    inside(look, only='tower', input_distribution=inputs)


def test_replaying_is_running():
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

    found = inside(look, only=None, losses=LOSSES, **LEVELS)
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
def test_replayed_tensors_may_be_written_to(unit):
    """As residual blocks do, whose ``+=`` hits what stands before it."""

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

    inside(look, only=unit, unit='layer', losses=LOSSES, net=Adding)


class Eager(Block):
    """Begins with a ReLU that writes to what comes in."""

    def forward(self, x):
        x = self.relu(x)
        return self.conv2(self.relu(self.conv1(x))) + x


class Unactivated(Net):
    def __init__(self):
        super().__init__()
        self.backbone[1], self.backbone[2] = nn.Identity(), Eager()


def test_a_unit_leaves_its_cached_inputs():
    def look(trainer, *_):
        fetch, sample = trainer.images.cache.fetch, trainer.samples[0]
        held = [sample.inputs, sample.exact]
        before = [t.clone() for t in flat(fetch(held))]
        assert all((t < 0).any() for t in before)
        for rate in (1.0, 0.5):
            trainer.loss(0, rate, seeded(0))
        for ours, theirs in zip(flat(fetch(held)), before, strict=True):
            assert torch.equal(ours, theirs)
        return True

    assert inside(look, drop_prob=0.5, net=Unactivated)


def test_global_gradient_reaches_the_unit_alone():
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

    args = dict(losses=[dict(type='DetectionLoss')], learn=LEARN)
    assert len(inside(look, only=None, **args)) == 6


@pytest.mark.parametrize('separate', [False, True])
def test_global_loss_sees_the_mixture_or_not(separate):
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
        with torch.no_grad():
            kept, dropped = by_hand(False), by_hand(True)
            assert kept[0] > 1.05 * dropped[0] and kept[1] > dropped[1]
            assert float(trainer.loss(0)) == pytest.approx(sum(kept))
            found = float(trainer.loss(0, 1.0, seeded(0)))
        expected = dropped[1] + (kept if separate else dropped)[0]
        assert found == pytest.approx(expected)

    inside(look, losses=LOSSES, separate_global=separate, drop_prob=0.5)


def test_factor_of_the_global_loss():
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


def test_autocast_runs_what_comes_after_the_unit():
    """The unit sees and gives the very same; held-out losses too."""

    def look(trainer, *_):
        trainer.settings.autocast = None
        exact = []
        plain = trainer.replayed(0, seen=exact)
        judged = trainer.loss_on([0, 1])
        trainer.settings.autocast = 'bfloat16'
        seen = []
        with torch.enable_grad():
            found = trainer.replayed(0, seen=seen)
        again = trainer.loss_on([0, 1])
        return exact, seen, plain, found, judged, again

    exact, seen, plain, found, judged, again = inside(
        look, losses=LOSSES, autocast='bfloat16'
    )
    assert torch.equal(exact[0], seen[0])
    assert judged == again
    for a, b in zip(flat(found), flat(plain), strict=True):
        assert a.dtype is torch.float32
        assert 0 < float((a - b).norm() / b.norm()) < 0.02


def test_learning_under_autocast():
    """Gradients of bfloat16 lead about where those of float32 do."""

    def learned(**args):
        _, session = reconstruct(learn=LEARN, losses=LOSSES, iters=20, **args)
        return [r.after / r.before for r in session.records if r.kept]

    plain, found = learned(), learned(autocast='bfloat16')
    assert len(plain) == len(found) > 2
    assert found == pytest.approx(plain, rel=0.1)
    assert found != plain
