# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PD-Quant's distribution correction, beside the unfolded float model."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from crossings import crossings
from reconstruct_model import (
    INIT,
    LEARN,
    Net,
    batches,
    equal,
    reconstruct,
    stopped_and_resumed,
)
from seeded import seeded
from torch import nn
from torch.utils._pytree import tree_flatten

from mmdet_ptq.calibration.samples import size_of
from mmdet_ptq.context import images
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes import checked
from mmdet_ptq.passes.reconstruct import correction as module
from mmdet_ptq.passes.reconstruct.correction import (
    DistributionCorrection,
    NormStatistics,
    norms_of,
)
from mmdet_ptq.passes.reconstruct.trainer import Trainer
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.records import UnitRecord

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
CORRECTION = dict(iters=20, lr=1e-2, lambda_c=0.5)
BLOCK, HEAD = 'backbone.3', 'tower.0'


def norm(channels, kind=nn.BatchNorm2d):
    """Statistics and weights of all signs; channel 0 is dead."""
    found = kind(channels)
    for t in (found.running_mean, found.weight.data, found.bias.data):
        t.copy_(torch.randn(channels))
    found.running_var.copy_(0.3 + torch.rand(channels))
    found.weight.data[0] = 0
    found.weight.data[1] = -abs(found.weight.data[1])
    return found


class NormBlock(nn.Module):
    """Adds in place, onto what the last norm gives."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn1 = norm(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = norm(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return self.relu(out)


class Normed(Net):
    """No norm in the neck; one in the head, for both levels."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            norm(8),
            nn.ReLU(),
            NormBlock(),
            NormBlock(),
        )
        self.tower = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), norm(8))


ARGS = dict(
    net=Normed,
    data=batches(8),
    learn=LEARN,
    drop_prob=0.5,
    iters=4,
    distribution_correction=CORRECTION,
)


def by_hand(norms, run):
    """The error of each norm at its own input, one channel at a time."""
    inputs = []
    hooks = [
        one.register_forward_pre_hook(lambda m, x: inputs.append((m, x[0])))
        for one in norms
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    total = 0.0
    for one, z in inputs:
        for sample in z.double():
            for c, values in enumerate(sample):
                if one.affine and abs(one.weight[c]) < 1e-4 * abs(one.bias[c]):
                    continue
                sigma = (float(one.running_var[c]) + one.eps) ** 0.5
                std = (float(values.var()) + one.eps) ** 0.5
                mean = float(values.mean()) - float(one.running_mean[c])
                total += (mean**2 + (std - sigma) ** 2) / len(z)
    assert inputs
    return total


@pytest.mark.parametrize(
    ('kind', 'shape'),
    [
        (nn.BatchNorm2d, (3, 6, 5, 4)),
        (nn.BatchNorm1d, (2, 6, 7)),
        (nn.SyncBatchNorm, (1, 6, 2, 1)),
    ],
)
def test_error_of_a_norm(kind, shape):
    torch.manual_seed(0)
    one = norm(6, kind).eval()
    one.weight.data[2] = 1e-6  # rounded away beside its bias
    plain = kind(6, eps=0.1, affine=False).eval()
    plain.running_mean.normal_()
    for each in (one, plain):
        z = 3 * torch.randn(shape) + 1
        found = float(NormStatistics(each)(each(z)))
        assert found > 1
        expected = by_hand([each], partial(each, z))
        assert found == pytest.approx(expected, 1e-4)


@pytest.mark.parametrize('shape', [(3, 6), (3, 6, 1, 1), (0, 6, 4, 4)])
def test_no_distribution_no_error(shape):
    assert float(NormStatistics(norm(6))(torch.randn(shape))) == 0


def test_dead_channels_have_no_slope():
    one = norm(6).eval()
    y = torch.randn(2, 6, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(NormStatistics(one)(y), y)
    assert not slope[:, 0].any() and slope[:, 1:].all()


@pytest.fixture
def corrected(monkeypatch):
    """Runs the pass; gives what each unit sees just before it is learned.

    ``look(trainer, before)``, ``before`` being the samples' float inputs
    and targets before the correction.
    """

    def run(look, only=BLOCK, **args):
        found, before = {}, {}
        call = DistributionCorrection.__call__

        def noted(self, session, cache, view, samples):
            before[view.name] = {
                j: cache.fetch((s.exact, s.targets))
                for j, s in samples.items()
            }
            return call(self, session, cache, view, samples)

        class Looking(Trainer):
            def fit(self, learners, acts, k):
                name = self.view.name
                if only in (None, name):
                    found[name] = look(self, before.get(name, {}))
                return UnitRecord(name, 0.0, 0.0, True)

        monkeypatch.setattr(DistributionCorrection, '__call__', noted)
        _, session = reconstruct(trainer=Looking, **{**ARGS, **args})
        assert found
        return (found if only is None else found[only]), session

    return run


def maps(inputs):
    return [t for t in tree_flatten(inputs)[0] if torch.is_tensor(t)]


@pytest.mark.parametrize(
    ('only', 'init'), [(BLOCK, INIT), (BLOCK, INIT[1:]), (HEAD, INIT)]
)
def test_loss_and_target_by_hand(corrected, only, init):
    """Two images of two sizes, beside the float model with its norms."""
    exact = Normed().eval()
    if only == BLOCK:
        unit = exact.get_submodule(BLOCK)
        norms = [unit.bn1, unit.bn2]
    else:
        unit, norms = exact.tower, [exact.tower[1]]

    def look(trainer, before):
        fetch = trainer.images.cache.fetch
        for j in (0, 1):
            sample, (old, _) = trainer.samples[j], before[j]
            new, targets = fetch((sample.exact, sample.targets))
            assert len(old) == len(new) == len(targets)
            values = []
            for was, now, target in zip(old, new, targets, strict=True):
                (x,), (moved,) = maps(was), maps(now)
                error = by_hand(norms, partial(unit, x))
                after = by_hand(norms, partial(unit, moved))
                distance = float((moved - x).square().sum(1).mean())
                after += distance / CORRECTION['lambda_c']
                assert distance > 0 and after < 0.99 * error
                values.append((error, after))
                with torch.no_grad():
                    torch.testing.assert_close(
                        unit(moved), target, rtol=1e-4, atol=1e-5
                    )
                # what the unit itself finds
                view = trainer.view
                one = DistributionCorrection(**dict(CORRECTION))
                with float_mode(trainer.session.model):
                    found = one.correct(
                        view,
                        norms_of(trainer.session, view),
                        sample.levels[0],
                        was,
                    )
                    (again,) = view(sample.levels[0], now)
                assert torch.equal(maps(found[0])[0], moved)
                assert torch.equal(again, target)
                assert found[2] == pytest.approx(error, 1e-4)
                assert found[3] == pytest.approx(after, 1e-4)
            # float elements of the mixture are those of x'
            mixed = trainer.inputs(sample, 0, 1.0, seeded(0))
            assert torch.equal(maps(mixed)[0], maps(new[0])[0])
        return len(norms), len(values)

    calls = 1 if only == BLOCK else 2
    found, _ = corrected(look, only=only, init=init)
    assert found == (len(norms), calls)


def test_units_without_norms_are_untouched(corrected):
    def look(trainer, before):
        fetch = trainer.images.cache.fetch
        moved = {
            j: not torch.equal(
                maps(fetch(trainer.samples[j].exact))[0], maps(x)[0]
            )
            for j, (x, _) in before.items()
        }
        return moved

    found, session = corrected(look, only=None)
    told = [r.unit for r in session.records if r.correction]
    assert told == ['backbone.0', BLOCK, 'backbone.4', HEAD]
    for name in told:
        # image 7 is held out
        assert sorted(found[name]) == list(range(7))
        assert all(found[name].values())
    for name in ('neck.0', 'neck.1'):
        assert found[name] and not any(found[name].values())


def test_held_out_images_keep_the_float_model(corrected):
    unit = Normed().eval().get_submodule(BLOCK)

    def look(trainer, before):
        assert 7 not in before and 0 in before
        fetch, sample = trainer.images.cache.fetch, trainer.samples[7]
        (x,) = maps(fetch(sample.exact))
        with torch.no_grad():
            torch.testing.assert_close(
                unit(x), fetch(sample.targets)[0], rtol=1e-4, atol=1e-5
            )
            # the float model has nothing else as input of this unit
            torch.testing.assert_close(
                Normed().eval().backbone[:3](batches()[7]['inputs'][0][None]),
                x,
                rtol=1e-4,
                atol=1e-5,
            )

    corrected(look)


def test_records_tell_that_the_loss_fell():
    _, session = reconstruct(**ARGS)
    told = [r.correction for r in session.records if r.correction]
    assert len(told) == 4
    assert all(0 < after < 0.99 * before for before, after in told)


def test_cache_holds_nothing_else(corrected):
    def look(trainer, _):
        cache = trainer.images.cache
        held = [s.entries() for s in trainer.samples.values()]
        expected = size_of([held, trainer.images.entries()])
        assert cache.in_memory + cache.on_disk == expected > 0

    corrected(look, only=None)


def test_no_better_input_is_dropped(corrected):
    """A step far too long ends anywhere."""

    def look(trainer, before):
        fetch, sample = trainer.images.cache.fetch, trainer.samples[0]
        exact, targets = before[0]
        assert torch.equal(maps(fetch(sample.exact))[0], maps(exact)[0])
        assert torch.equal(fetch(sample.targets)[0], targets[0])

    for lr in (1e3, 1e37):
        wild = dict(iters=1, lr=lr)
        _, session = corrected(look, distribution_correction=wild)
        (told,) = [r.correction for r in session.records if r.unit == BLOCK]
        assert told[0] == told[1] > 0


def test_same_seed_same_result():
    first = reconstruct(**ARGS)[0]
    assert equal(first, reconstruct(**ARGS)[0])
    without = dict(ARGS, distribution_correction=None)
    assert not equal(first, reconstruct(**without)[0])
    on_disk = reconstruct(calibration=dict(cache='50KiB'), **ARGS)[0]
    assert equal(first, on_disk)


def test_orders_correct_the_same():
    """Also where the float inputs are the quantized ones' entries."""
    args = dict(ARGS, input_distribution='float')
    one, first = reconstruct(**args)
    two, second = reconstruct(order='parallel', **args)
    assert equal(one, two)
    told = [r.correction for r in first.records]
    assert told == [r.correction for r in second.records]
    assert told[0]
    without = dict(args, distribution_correction=None)
    assert not equal(one, reconstruct(**without)[0])


def test_resume_is_the_uninterrupted_run():
    whole, expected, _ = stopped_and_resumed(None, **ARGS)
    model, session, _ = stopped_and_resumed(3, **ARGS)
    assert equal(model, whole)
    for ours, theirs in zip(session.records, expected.records, strict=True):
        assert ours.correction == theirs.correction


def test_ranks_correct_their_own_images(corrected, monkeypatch):
    def look(trainer, before):
        cache, view = trainer.images.cache, trainer.view
        whole = {
            j: cache.fetch(
                (trainer.samples[j].exact, trainer.samples[j].targets)
            )
            for j in (0, 1, 2)
        }

        def again(share):
            samples = {}
            for j in share:
                sample = trainer.samples[j]
                samples[j] = SimpleNamespace(
                    levels=sample.levels,
                    images=sample.images,
                    inputs=None,
                    exact=cache.keep(before[j][0]),
                    targets=cache.keep(before[j][1]),
                )
            told = one(trainer.session, cache, view, samples)
            for j, sample in samples.items():
                found = cache.fetch((sample.exact, sample.targets))
                pairs = zip(maps(found), maps(whole[j]), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)
            return told

        one = DistributionCorrection(**CORRECTION)
        means = {j: again([j]) for j in (0, 1, 2)}
        other = torch.tensor([*means[1], 1], dtype=torch.float64)
        monkeypatch.setattr(module, 'get_world_size', lambda: 2)
        monkeypatch.setattr(
            module, 'all_reduce', lambda sums: sums.add_(other)
        )
        expected = [
            sum(pair) / 3 for pair in zip(*means.values(), strict=True)
        ]
        assert again([0, 2]) == pytest.approx(expected)
        assert len({m[0] for m in means.values()}) == 3
        monkeypatch.setattr(module, 'get_world_size', lambda: 1)

    corrected(look)


def test_number_of_images_while_inputs_are_corrected(monkeypatch):
    seen, correct = [], DistributionCorrection.correct

    def noted(self, *args):
        seen.append(images())
        return correct(self, *args)

    monkeypatch.setattr(DistributionCorrection, 'correct', noted)
    reconstruct(**ARGS)
    assert seen and set(seen) == {1}


def test_writing_onto_the_input_does_no_harm():
    """And a call that is given no maps is left as it is."""
    layer, seen = norm(6).eval(), []

    def view(levels, inputs):
        seen.append(levels)
        ((x, count), _) = inputs
        return [layer(x.mul_(count))] if torch.is_tensor(x) else [x]

    x = torch.randn(1, 6, 4, 4)
    copy = x.clone()
    one = DistributionCorrection(**CORRECTION)
    norms = [(layer, NormStatistics(layer))]
    args, outputs, before, after = one.correct(
        view, norms, dict(a=1), ((x, 2), {})
    )
    assert torch.equal(x, copy) and not torch.equal(args[0][0], x)
    with torch.no_grad():
        assert torch.equal(outputs[0], layer(2 * args[0][0]))
    assert after < before and args[0][1] == 2
    assert seen == [dict(a=1)] * (CORRECTION['iters'] + 2)
    nothing = ((7, 2), {})
    assert one.correct(view, norms, {}, nothing) == (nothing, [7], 0, 0)


def test_the_rate_falls_where_nothing_is_won(monkeypatch):
    """The loss of a linear function of one's own choice never falls."""
    rates = []
    step = torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]['lr'])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, 'step', noted)
    layer = norm(6).eval()
    x = torch.randn(1, 6, 4, 4)
    rising = [(layer, lambda y: y.sum() * 0 + len(rates) + 1)]
    one = DistributionCorrection(iters=350)
    found = one.correct(lambda _, i: [layer(i[0][0])], rising, {}, ((x,), {}))
    assert rates[0] == rates[100] == 1e-3
    assert rates[110] == pytest.approx(1e-4)
    assert rates[-1] == pytest.approx(1e-5)
    assert found[2] == found[3] == 1


def test_losses_are_looked_at_seldom(monkeypatch):
    """The rates are those of a look at each step."""
    rates, step = [], torch.optim.Adam.step

    def noted(self, *args, **kwargs):
        rates.append(self.param_groups[0]['lr'])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, 'step', noted)
    generator = seeded(0)
    # it falls for a while, and is noise later
    values = torch.rand(602, generator=generator) + 3
    values[:150] += torch.linspace(5, 0, 150)
    layer = norm(6).eval()
    x = torch.randn(1, 6, 4, 4, generator=generator)
    falling = [(layer, lambda y: y.sum() * 0 + values[len(rates)])]
    one = DistributionCorrection(iters=600)
    with crossings() as found:
        one.correct(lambda _, i: [layer(i[0][0])], falling, {}, ((x,), {}))
    assert found['tolist'] < 20
    # the loss of x and of x'
    assert found['_local_scalar_dense'] == 2
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=100, min_lr=1e-5
    )
    expected = []
    for value in values[:600].tolist():
        expected.append(optimizer.param_groups[0]['lr'])
        schedule.step(value)
    assert rates == expected and len(set(rates)) == 3


@pytest.mark.parametrize(
    ('args', 'match'),
    [
        (dict(drop_prob=0.0), 'drop_prob above 0'),
        (dict(distribution_correction=True), 'a dict, got True'),
        (dict(distribution_correction=dict(iter=5)), "mean 'iters'"),
        (dict(distribution_correction=dict(iters=0)), 'iters must'),
        (dict(distribution_correction=dict(iters=2.0)), 'iters must'),
        (dict(distribution_correction=dict(lr=0)), 'lr must'),
        (dict(distribution_correction=dict(lambda_c=-1)), 'lambda_c must'),
    ],
    ids=str,
)
def test_bad_arguments(args, match):
    with pytest.raises((QuantConfigError, ValueError), match=match):
        reconstruct(**{**ARGS, **args})


def test_recipe_has_it():
    def arguments(**changes):
        config = parse_quant_cfg(
            dict(
                recipe='pd_quant',
                bits='w4a4',
                pass_args=dict(Reconstruct=changes),
            )
        )
        return vars(config.built_passes[-1].correction or object)

    assert arguments() == dict(iters=500, lr=1e-3, lambda_c=0.02)
    changed = arguments(distribution_correction=dict(iters=7))
    assert changed == dict(iters=7, lr=1e-3, lambda_c=0.02)
    assert 'iters' not in arguments(distribution_correction=None)


@pytest.mark.parametrize(
    ('key', 'kind'),
    [('equalize', 'EqualizeChannels'), ('scale_inputs', 'ScaleInputs')],
)
def test_scaled_maps_are_not_what_norms_have_stored(key, kind):
    found = parse_quant_cfg(
        dict(recipe='pd_quant', bits='w4a4', **{key: True})
    )
    match = f'{kind} has scaled.*{key}=False'
    with pytest.raises(QuantConfigError, match=match):
        checked(found.built_passes)
    qdrop = dict(recipe='qdrop', bits='w4a4', **{key: True})
    assert checked(parse_quant_cfg(qdrop).built_passes)
