# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A replayed forward gives what a whole one gives, and runs less."""

import copy
from pathlib import Path

import pytest
import torch

from mmdet_ptq.detectors import find_adapter
from mmdet_ptq.engine.quantize import prepare
from mmdet_ptq.layers import float_mode
from mmdet_ptq.passes.reconstruct.capture import UnitView, frozen, mix
from mmdet_ptq.passes.reconstruct.replay import Prefix
from mmdet_ptq.passes.reconstruct.samples import reset_levels
from mmdet_ptq.recipe import parse_quant_cfg
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
    data = noise_batches(1, (96, 128))[0]
    config = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    session = prepare(model, config, copy.deepcopy(data))
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
        reset_levels(model)
        return adapter.outputs(model, batch, anchor)

    with frozen(model), float_mode(model):
        prefix = Prefix(model, view, run)
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
    data = noise_batches(1, (64, 64))[0]
    config = parse_quant_cfg(dict(recipe='minmax', bits='w8a8'))
    session = prepare(model, config, copy.deepcopy(data))
    adapter = find_adapter(model)
    batch = model.data_preprocessor(data, False)
    unit = next(u for u in session.graph.units if 'reg_convs.1' in u.name)
    view = UnitView(model, session.graph, unit)

    def run():
        reset_levels(model)
        return adapter.outputs(model, batch, {})

    with frozen(model), float_mode(model):
        stored = Prefix(model, view, run).record(run)
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
    view = object.__new__(UnitView)
    view.name, view.module, view.layers = 'unit', net.unit, {}
    view.relu = False
    with frozen(net):
        prefix = Prefix(net, view, lambda: net(x))
    assert prefix.keys == [('beside', 0)]


def test_mixing_rates():
    ones, zeros = torch.ones(100, 100), torch.zeros(100, 100)
    index = torch.arange(3)
    generator = torch.Generator().manual_seed(0)
    a = ((ones,), dict(x=ones, i=index))
    b = ((zeros,), dict(x=zeros, i=index + 1))
    assert mix(a, b, 1.0, generator) is a
    (first,), rest = mix(a, b, 0.0, generator)
    assert not first.any() and not rest['x'].any()
    assert rest['i'] is index
    (first,), rest = mix(a, b, 0.3, generator)
    assert abs(float(first.mean()) - 0.3) < 0.02
    assert not torch.equal(first, rest['x'])
