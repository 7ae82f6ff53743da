# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors in which a parameter has several readers, or is computed."""

import copy

import pytest
import torch
from mmdet.apis import init_detector
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn
from torch.nn.functional import conv2d
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from mmdet_ptq import load_quantized, quantize_detector, save_quantized
from mmdet_ptq.cost import storage_mb
from mmdet_ptq.layers import named_tensors


class Pair(BaseModel):
    """Two convolutions, each before a norm of its own."""

    def __init__(self, change=None, read=None):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Conv2d(6, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in 'ab')
        self.out = nn.Conv2d(6, 2, 1)
        self.read = read
        for norm in self.norms:
            norm.running_var.uniform_(0.2, 3)
            norm.weight.data.uniform_(0.5, 2)
        if change is not None:
            change(self)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.stem(torch.stack(list(inputs)).float()).relu()
        x = self.norms[0](self.a(x)).relu()
        x = self.norms[1](self.b(x)).relu()
        if self.read is not None:
            x = x + self.read(self, x)
        return [self.out(x)]


def images(count=6):
    generator = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[torch.randn(3, 8, 8, generator=generator)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def share_weight(net):
    net.b.weight = net.a.weight


def share_bias(net):
    net.b.bias = net.a.bias


def share_all(net):
    share_weight(net)
    share_bias(net)


def other_owner(net):
    net.table = nn.Embedding(6, 54)
    net.table.weight = net.a.weight


def plain_read(net, x):
    return conv2d(x, net.a.weight, padding=1)


def derived_read(net, x):
    weight = (net.a.weight.flatten(1) * 0.5).view(6, 6, 3, 3)
    return conv2d(x, weight, padding=1)


class Hidden(nn.Module):
    """A leaf that reads the weight of a layer it does not own."""

    def __init__(self, layer):
        super().__init__()
        self.layers = (layer,)

    def forward(self, x):
        return conv2d(x, self.layers[0].weight, padding=1)


def hide(net):
    net.hidden = Hidden(net.a)


def hidden_read(net, x):
    return net.hidden(x)


def norm_of(model, data):
    with torch.no_grad():
        return torch.cat([model(**batch)[0].flatten() for batch in data])


def quantized(make, recipe, tmp_path, **args):
    """Quantizes, saves, loads; what is loaded equals what was simulated."""
    model = make().eval()
    cfg = dict(recipe=recipe, bits='w8a8', **args)
    if recipe not in ('minmax', 'uniform'):
        cfg['pass_args'] = dict(Reconstruct=dict(iters=4, revert=False))
    session = quantize_detector(model, images(), cfg)
    save_quantized(session, tmp_path / 'q.pth')
    again = load_quantized(make().eval(), tmp_path / 'q.pth')
    mine, theirs = named_tensors(model), named_tensors(again)
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert torch.equal(theirs[name], tensor), name
    data = images()
    assert torch.equal(norm_of(again, data), norm_of(model, data))
    exact = norm_of(make().eval(), data)
    error = (norm_of(model, data) - exact).norm() / exact.norm()
    assert error < 0.05, float(error)
    return session


SHARED = {
    'weight': (share_weight, None),
    'bias': (share_bias, None),
    'all': (share_all, None),
    'table': (other_owner, None),
    'read': (None, plain_read),
    'derived': (None, derived_read),
    'hidden': (hide, hidden_read),
}


@pytest.mark.parametrize('recipe', ['minmax', 'uniform', 'adaquant', 'qdrop'])
@pytest.mark.parametrize('case', SHARED)
def test_shared_parameters(case, recipe, tmp_path):
    session = quantized(lambda: Pair(*SHARED[case]), recipe, tmp_path)
    folded = {edit.norm for edit in session.edits}
    notes = '\n'.join(session.notes)
    assert 'norms.0: not folded into a: its ' in notes
    if case in ('weight', 'bias', 'all'):
        assert folded == set()
        assert 'norms.1: not folded into b: its ' in notes
        a, b = session.layers['a'], session.layers['b']
        assert a.tied and b.tied and not session.layers['stem'].tied
        same = a.weight_quantizer is b.weight_quantizer
        assert same == (case != 'bias')
    else:
        assert folded == {'norms.1'}
        plan = session.plan.layers['a']
        assert plan.weight is plan.acts['input'] is None
        assert plan.why_float.startswith('its weight is also ')
        assert f'a: stays float, {plan.why_float}' in notes


def test_one_weight_is_saved_and_counted_once(tmp_path):
    session = quantized(lambda: Pair(share_weight), 'minmax', tmp_path)
    saved = torch.load(tmp_path / 'q.pth', weights_only=True)
    assert {'a', 'b'} & set(saved['codes']) == {'a'}
    full, packed = storage_mb(session.model)
    alone = storage_mb(quantized(Pair, 'minmax', tmp_path).model)
    codes = 6 * 6 * 9 + 6 * 5  # 8 bits, and a scale and zero point a channel
    # and the bias that its norm gave the second convolution
    norms = 2 * 2 * 6 * 4 - 6 * 4
    assert (full - alone[0]) * 1e6 == pytest.approx(norms - 6 * 6 * 9 * 4)
    assert (packed - alone[1]) * 1e6 == pytest.approx(norms - codes)


@pytest.mark.parametrize(
    'rule, bits',
    [
        (dict(match='a', weight=dict(bits=5)), 5),
        (dict(match='b', weight=dict(bits=5)), 8),
        (dict(match='b', skip=True), None),
        (dict(match='a', weight=None), None),
    ],
)
def test_one_weight_has_one_spec(rule, bits, tmp_path):
    session = quantized(
        lambda: Pair(share_weight), 'minmax', tmp_path, rules=[rule]
    )
    for name in 'ab':
        spec = session.plan.layers[name].weight
        assert (spec and spec.bits) == bits
    word = 'left float' if bits is None else 'that of a is taken'
    assert any(word in note for note in session.notes)


def test_a_shared_weight_is_replaced_for_all():
    model = Pair(share_weight).eval()
    session = quantize_detector(
        model, images(), dict(recipe='minmax', bits='w8a8')
    )
    spec = session.plan.layers['a'].weight
    new = session.replace('b', 'weight', spec)
    for name in 'ab':
        assert session.layers[name].weight_quantizer is new
    session.replace('a', 'weight', None)
    for name in 'ab':
        assert session.layers[name].weight_quantizer is None
        assert session.plan.layers[name].weight is None


def halve(layer):

    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    parametrize.register_parametrization(layer, 'weight', Halved())


COMPUTED = {
    'weight_norm': parametrizations.weight_norm,
    'weight_norm_hook': nn.utils.weight_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'spectral_norm_hook': spectral_norm,
    'pruned': lambda layer: prune.l1_unstructured(layer, 'weight', 0.3),
    'halved': halve,
}


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize('recipe', ['minmax', 'adaquant'])
@pytest.mark.parametrize('case', COMPUTED)
def test_computed_weights(case, recipe, tmp_path):
    session = quantized(
        lambda: Pair(lambda net: COMPUTED[case](net.a)), recipe, tmp_path
    )
    assert session.plan.layers['a'].weight.bits == 8
    assert session.plan.uncovered == {}
    # the weight that a forward takes is on the grid, and a copy can be made
    a = copy.deepcopy(session.model).a
    assert len(a.weight[0].unique()) <= 256
    assert torch.equal(a.weight_quantizer(a.weight), a.weight)
    assert {edit.norm for edit in session.edits[1:]} == {'norms.0', 'norms.1'}


def test_a_weight_that_is_no_parameter_stays_float(tmp_path):

    def outside(net):
        weight = net.a.weight
        del net.a.weight
        net.own = weight
        net.a.weight = weight * 1.0

    session = quantized(lambda: Pair(outside), 'minmax', tmp_path)
    assert 'a' not in session.plan.layers
    assert session.plan.uncovered == {
        'a': 'its weight is no parameter but set from outside'
    }


@pytest.mark.filterwarnings('ignore:.*weight_norm')
@pytest.mark.parametrize('case', ['weight_norm', 'weight_norm_hook', 'pruned'])
def test_computed_weights_go_through_the_runner(case, tiny, ptq, tmp_path):

    @MODELS.register_module(name='ComputedResNet', force=True)
    class ComputedResNet(ResNet):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            COMPUTED[case](self.layer1[0].conv2)

    config = tmp_path / 'computed.py'
    base = str(tiny.config['retinanet'])
    config.write_text(
        f'_base_ = {base!r}\n'
        "model = dict(backbone=dict(type='ComputedResNet'))\n"
    )
    saved = torch.load(tiny.checkpoint['retinanet'], weights_only=True)
    model = MODELS.build(Config.fromfile(config).model)
    model.load_state_dict(saved['state_dict'], strict=False)
    path = tmp_path / 'computed.pth'
    torch.save(dict(saved, state_dict=model.state_dict()), path)
    run = ptq('--bits', 'w8a8', config=config, checkpoint=path)
    assert run.code == 0
    again = init_detector(
        str(run.work / 'computed.py'), str(run.artefact), device='cpu'
    )
    layer = again.backbone.layer1[0].conv2
    assert layer.baked and layer.weight_quantizer.bits == 8
