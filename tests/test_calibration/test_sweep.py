# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forwards of a detector whose units change one after the other."""

import pytest
import torch
from reconstruct_model import RULES, Net, batches, outputs
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.calibration import ActivationCache, Sweep, frozen
from mmdet_ptq.layers import convert
from mmdet_ptq.structures import Unit

PASSES = [dict(type='Observe'), dict(type='SetRanges')]


class Nested(Net):
    """Its head is a module that is called once for each level."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(self.tower, nn.ReLU(), self.out)
        del self.tower, self.out

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        fine = self.head(self.neck[0](x))
        return [fine, self.head(self.neck[1](x[..., ::2, ::2]))]


@pytest.fixture
def session():
    rules = [
        dict(RULES[0], act=dict(per_level=True)),
        dict(match='head.2', skip=True),
    ]
    return quantize_detector(
        Nested().eval(),
        batches(),
        dict(bits='w4a4', rules=rules, passes=PASSES),
    )


def narrow(layer):
    quantizer = layer.act_quantizers['input']
    low, high = quantizer.range()
    quantizer.set_range(low * 0.7, high * 0.7)


@pytest.fixture
def cache(tmp_path):
    found = ActivationCache(1 << 30, tmp_path)
    yield found
    found.close()


def check(session, cache, changes, soon=()):
    """Outputs after each change are those of a whole forward."""
    model, layers = session.model, session.layers
    data = batches(3)
    sweep = Sweep(model, session.graph.units, cache)
    computed = []
    with torch.no_grad(), frozen(model), sweep.watching():
        for names in changes:
            for name in names:
                narrow(layers[name])
            sweep.change(names)
            start = sweep.computed
            for j in range(3):
                one = data[j : j + 1]
                found = sweep.run(j, lambda one=one: outputs(model, one), soon)
                exact = outputs(model, one)
                assert all(map(torch.equal, found, exact))
            computed.append((sweep.computed - start) / 3)
    assert not any('forward' in vars(m) for m in model.modules())
    assert cache.in_memory == 0
    return computed


def test_modules_before_a_change_are_not_called(session, cache):
    # stem, two blocks and the backbone; two of the neck; the head and its
    # two layers on two levels
    whole = 4 + 2 + 6
    assert check(
        session,
        cache,
        [
            [],
            [],
            # what was inside the head is gone once it has ended
            ['head.0'],
            ['neck.1'],
            # and so is what was inside the backbone
            ['backbone.3.conv2'],
            ['backbone.0'],
            ['head.0', 'neck.0'],
        ],
    ) == [whole, 0, 7, 4, whole, whole, 8]


def test_what_changes_next_is_not_kept(session, cache):
    # the backbone has not ended for good: its stem and first block stay
    soon = ['backbone.3.conv1', 'backbone.3.conv2']
    found = check(session, cache, [[], soon, soon], soon)
    assert found == [12, 10, 10]


def test_a_forward_that_is_left_goes_on_where_it_was(session, cache):
    model, data = session.model, batches(1)
    sweep = Sweep(model, session.graph.units, cache)

    class Left(Exception):
        pass

    def leave(*_):
        raise Left

    handle = session.layers['backbone.3.conv1'].register_forward_hook(leave)
    with torch.no_grad(), frozen(model), sweep.watching():
        with pytest.raises(Left):
            sweep.run(0, lambda: outputs(model, data))
        handle.remove()
        # the stem and the first block; the second was not done
        assert sweep.computed == 2
        found = sweep.run(0, lambda: outputs(model, data))
        assert sweep.computed == 12
        assert all(map(torch.equal, found, outputs(model, data)))


def test_outputs_are_copies(session, cache):
    model, data = session.model, batches(1)
    sweep = Sweep(model, session.graph.units, cache)
    with torch.no_grad(), frozen(model), sweep.watching():
        first = sweep.run(0, lambda: outputs(model, data))
        kept = [t.clone() for t in first]
        for t in first:
            t.zero_()
        for t in sweep.run(0, lambda: outputs(model, data)):
            t.zero_()
        again = sweep.run(0, lambda: outputs(model, data))
    assert all(map(torch.equal, kept, again))


class Boxed:
    """What a module may return that is no tensor."""

    def __init__(self, value):
        self.value = value


class Boxing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return Boxed(self.conv(x))


def test_objects_are_made_anew(cache):
    """Whoever gets one may change it."""
    model = nn.ModuleDict(dict(boxing=Boxing()))
    convert(model)
    units = [Unit('boxing.conv', ('boxing.conv',))]
    sweep = Sweep(model, units, cache)
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad(), sweep.watching():
        first = sweep.run(0, lambda: model['boxing'](x))
        second = sweep.run(0, lambda: model['boxing'](x))
    assert first is not second
    assert torch.equal(first.value, second.value)
    assert sweep.computed == 3  # the box twice, the layer once


class Resampled(Nested):
    """Between neck and head is a module without layers, as a RoI head has."""

    def __init__(self):
        super().__init__()
        self.extractor = nn.Sequential(nn.AvgPool2d(2), nn.Upsample(None, 2))
        self.calls = 0
        self.extractor[0].register_forward_hook(self._count)

    def _count(self, *_):
        self.calls += 1

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        return [self.head(self.extractor(self.neck[0](x)))]


def test_a_module_without_layers_is_called_once(cache):
    session = quantize_detector(
        Resampled().eval(),
        batches(),
        dict(bits='w4a4', rules=RULES[:1], passes=PASSES),
    )
    model, layers, data = session.model, session.layers, batches(1)
    sweep = Sweep(model, session.graph.units, cache)
    with torch.no_grad(), frozen(model), sweep.watching():
        for changed, calls in ((), 1), (('head.0',), 0), (('neck.0',), 1):
            for name in changed:
                narrow(layers[name])
            sweep.change(changed)
            model.calls = 0
            found = sweep.run(0, lambda: outputs(model, data))
            assert model.calls == calls
            exact = outputs(model, data)
            assert all(map(torch.equal, found, exact))
