# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a unit cannot change, and running without it."""

import copy
from pathlib import Path

import pytest
import torch
from unit_kit import Overwriting, plain_view

from mmdet_ptq.calibration import Batches
from mmdet_ptq.calibration.replay import Replay
from mmdet_ptq.calibration.units import UnitView, frozen
from mmdet_ptq.context import forward_context
from mmdet_ptq.detectors import find_adapter
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers import float_mode
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.testing import noise_batches, random_detector

CONFIGS = Path(__file__).parents[2] / 'configs' / 'digits'


DETECTORS = {
    'retinanet': ['backbone.layer3.1', 'neck.lateral', 'cls_convs.1'],
    'faster-rcnn': ['backbone.layer4.0', 'rpn_conv', 'shared_fcs.0'],
    'detr': ['backbone.layer4.2', 'encoder.layers.1', 'decoder.layers.1'],
    'mask-rcnn_swin': ['stages.1.blocks.0', 'mask_head.convs.0'],
}


@pytest.fixture(scope='module', params=DETECTORS)
def detector(request):
    model = random_detector(CONFIGS / f'{request.param}_digits.py')
    model.to(torch.get_default_device())
    data = noise_batches(1, (96, 128))[0]
    config = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    session = prepare(
        model, config, copy.deepcopy(data), Batches(model, [data])
    )
    adapter = find_adapter(model, mask=True)
    batch = model.data_preprocessor(data, False)
    with torch.no_grad(), float_mode(model):
        anchor = adapter.anchor(model, batch)
    names = [
        next(u for u in session.graph.units if part in u.name)
        for part in DETECTORS[request.param]
    ]
    return model, session.graph, adapter, batch, anchor, names


def tensors(outputs):
    return [t for o in outputs for t in (o.logits, o.boxes) if t is not None]


@pytest.mark.parametrize('at', range(3))
def test_replay(detector, at):
    model, graph, adapter, batch, anchor, units = detector
    if at >= len(units):
        pytest.skip('this detector has fewer units here')
    view = UnitView(model, graph, units[at])
    count = [0]

    def run():
        with forward_context():
            return adapter.outputs(model, batch, anchor)

    with frozen(model), float_mode(model):
        prefix = Replay(model, view, run)
        stored = prefix.record(run)
        assert stored and not {n for n, _ in stored} & set(view.layers)

        def add(*_):
            count[0] += 1

        hooks = [
            model.get_submodule(name).register_forward_hook(add)
            for name in graph.layers
        ]
        try:
            parameters = [
                layer.weight.requires_grad_()
                for layer in view.layers.values()
                if getattr(layer, 'weight', None) is not None
            ]

            def both():
                count[0] = 0
                found = tensors(run())
                loss = sum(t.square().sum() for t in found)
                grads = torch.autograd.grad(loss, parameters)
                return [t.detach() for t in found], grads, count[0]

            expected, slopes, whole = both()
            with prefix.replaying(stored):
                found, grads, replayed = both()
        finally:
            for hook in hooks:
                hook.remove()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for a, b in zip(grads, slopes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max())
    assert any(bool(g.any()) for g in grads)
    assert replayed < whole
    with torch.no_grad(), float_mode(model):
        again = tensors(run())
    # nothing is left behind
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_head_units_leave_the_backbone_out():
    model = random_detector(CONFIGS / 'retinanet_digits.py')
    model.to(torch.get_default_device())
    data = noise_batches(1, (64, 64))[0]
    config = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    session = prepare(
        model, config, copy.deepcopy(data), Batches(model, [data])
    )
    adapter = find_adapter(model)
    batch = model.data_preprocessor(data, False)
    unit = next(u for u in session.graph.units if 'reg_convs.1' in u.name)
    view = UnitView(model, session.graph, unit)
    # a convolution is taken with its activation
    assert view.module is model.get_submodule('bbox_head.reg_convs.1')

    def run():
        with forward_context():
            return adapter.outputs(model, batch, {})

    with frozen(model), float_mode(model):
        stored = Replay(model, view, run).record(run)
    names = {name for name, _ in stored}
    assert {'backbone', 'neck'} <= names
    assert not any(n.startswith(('backbone.', 'neck.')) for n in names)
    # each of the five levels of what lies before and beside the unit
    assert ('bbox_head.reg_convs.0', 4) in stored
    assert ('bbox_head.retina_cls', 4) in stored
    assert not any('retina_reg' in n for n in names)


def test_detached_dependence_is_seen():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = torch.nn.Linear(4, 4)
            self.point = torch.nn.Linear(4, 4)
            self.beside = torch.nn.Linear(4, 4)

        def forward(self, x):
            y = self.unit(x)
            # decoders detach reference points
            return y + self.point(y.detach()) + self.beside(x)

    net, x = Net(), torch.randn(2, 4)
    with frozen(net):
        prefix = Replay(net, plain_view(net.unit), lambda: net(x))
    assert prefix.keys == [('beside', 0)]


def test_dependence_that_noise_does_not_show():
    """A closed gate: the noise of the trial does not open it."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = torch.nn.Linear(4, 4)
            self.gate = torch.nn.Threshold(1e6, 0.0)
            self.beside = torch.nn.Linear(4, 4)

        def forward(self, x):
            return self.gate(self.unit(x)) + self.beside(x)

    net, x = Net(), torch.randn(2, 4)
    with frozen(net):
        prefix = Replay(net, plain_view(net.unit), lambda: net(x))
    assert prefix.keys == [('beside', 0)]


def test_a_recording_that_stops(detector):
    model, graph, adapter, batch, anchor, units = detector
    last = list(graph.layers)[-1]
    ended = [0]
    hook = model.get_submodule(last).register_forward_hook(
        lambda *_: ended.__setitem__(0, ended[0] + 1)
    )
    for unit in units:
        view, found = UnitView(model, graph, unit), []
        roles = graph.layers[unit.layers[0]].roles
        assert view.once == bool(roles & {'backbone', 'neck'})
        for stop in (False, True):
            calls = []
            found.append(calls)
            ended[0] = 0
            with (
                torch.no_grad(),
                forward_context(),
                float_mode(model),
                view.recording(calls.append, stop),
            ):
                adapter.outputs(model, copy.deepcopy(batch), anchor)
            assert bool(ended[0]) == (not stop or not view.once)
        for whole, early in zip(*found, strict=True):
            assert whole.levels == early.levels
            torch.testing.assert_close(
                (early.inputs, early.outputs),
                (whole.inputs, whole.outputs),
                rtol=0,
                atol=0,
            )
    hook.remove()


def test_what_is_recorded_is_copied():
    net, x = Overwriting(), torch.randn(2, 4)
    view, calls = plain_view(net.unit), []
    with torch.no_grad(), frozen(net):
        middle = net.before(x)
        with view.recording(calls.append):
            net(x)
        prefix = Replay(net, view, lambda: net(x))
        stored = prefix.record(lambda: net(x))
        (call,) = calls
        assert torch.equal(call.inputs[0][0], middle)
        assert torch.equal(call.outputs[0], net.unit(middle))
        assert torch.equal(stored['before', 0][0], middle)
        # replayed whatever comes in, and only here
        expected, other = net(x), net(-x)
        with prefix.replaying(stored):
            assert torch.equal(net(-x), expected)
        assert torch.equal(net(-x), other) and not torch.equal(other, expected)
