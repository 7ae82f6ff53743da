# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights that hooks and parametrizations compute, made plain ones."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import (
    parametrizations,
    parametrize,
    prune,
    spectral_norm,
    weight_norm,
)

from mmdet_ptq.errors import PTQError
from mmdet_ptq.layers import is_leaf
from mmdet_ptq.surgery import (
    FusedWeight,
    copy_model,
    edits_of,
    fuse_weights,
)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class Same(nn.Module):
    def forward(self, x):
        return x


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def _old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return weight_norm(layer)


def _pruned(layer):
    prune.l1_unstructured(layer, 'weight', 0.5)
    return layer


def _pruned_twice(layer):
    return _pruned(_pruned(layer))


def _parametrized(layer):
    parametrize.register_parametrization(layer, 'weight', Halved())
    parametrize.register_parametrization(layer, 'weight', Halved())
    if layer.bias is not None:
        parametrize.register_parametrization(layer, 'bias', Halved())
    return layer


def _as_it_is(layer):
    parametrize.register_parametrization(layer, 'weight', Same())
    return layer


WRAPS = {
    'weight_norm_hook': _old_weight_norm,
    'weight_norm': parametrizations.weight_norm,
    'spectral_norm_hook': spectral_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'orthogonal': parametrizations.orthogonal,
    'pruned': _pruned,
    'pruned_twice': _pruned_twice,
    'parametrized': _parametrized,
    'as_it_is': _as_it_is,
}
LAYERS = {
    'conv': (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 6)),
    'linear': (lambda: nn.Linear(4, 6, bias=False), (3, 4)),
}


def net(wrap, layer, seed=0):
    torch.manual_seed(seed)
    found = nn.Sequential(WRAPS[wrap](LAYERS[layer][0]()))
    x = torch.randn(LAYERS[layer][1])
    found(x)
    # as a checkpoint does: what was computed before is out of date
    with torch.no_grad():
        for parameter in found.parameters():
            parameter *= 1.5
    return found.eval(), x


@pytest.mark.parametrize('layer', LAYERS)
@pytest.mark.parametrize('wrap', WRAPS)
@pytest.mark.parametrize('frozen', [False, True])
def test_fused_is_exact(wrap, layer, frozen):
    model, x = net(wrap, layer)
    model.requires_grad_(not frozen)
    # of another of the same numbers: a forward would compute the weight anew
    want = net(wrap, layer)[0](x).detach()
    with torch.no_grad():
        edits, refused = fuse_weights(model)
        assert torch.equal(model(x), want)
    assert refused == {} and edits == [FusedWeight('0')]
    plain = type(LAYERS[layer][0]())
    assert type(model[0]) is plain and is_leaf(model[0])
    keys = nn.Sequential(LAYERS[layer][0]()).state_dict()
    assert set(model.state_dict()) == set(keys)
    assert isinstance(model[0].weight, nn.Parameter)
    assert not model[0]._forward_pre_hooks
    assert torch.equal(copy.deepcopy(model)(x), want)
    assert fuse_weights(model) == ([], {})
    # again, on a model of other numbers
    fresh, _ = net(wrap, layer, seed=1)
    for edit in edits_of([e.to_dict() for e in edits]):
        edit.rebuild(fresh)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(x), want)


@pytest.mark.parametrize('wrap', WRAPS)
def test_what_it_is_computed_from_stays_for_others(wrap):
    """Another layer may own the parameter under the parametrization."""
    model, _ = net(wrap, 'linear')
    other = nn.Module()
    for name, parameter in model[0].named_parameters():
        other.register_parameter(name.replace('.', '_'), parameter)
    before = copy.deepcopy(dict(other.named_parameters()))
    fuse_weights(nn.ModuleList([model, other]))
    # quantizing writes into the fused one
    model[0].weight.data.zero_()
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_what_is_not_constant_stays():
    layer = nn.Linear(3, 3)
    parametrize.register_parametrization(layer, 'weight', Noisy())
    outside = nn.Linear(3, 3)
    weight = outside.weight
    del outside.weight
    outside.weight = weight * 2
    kept = nn.Linear(3, 3)
    del kept.weight
    kept.register_buffer('weight', weight.detach())
    norm = nn.LayerNorm(3)
    del norm.weight
    norm.weight = weight[0] * 2
    model = nn.Sequential(layer, outside, nn.Linear(3, 3), kept, norm).eval()
    edits, refused = fuse_weights(model)
    assert edits == []
    assert refused == {
        '0': 'its weight is computed anew, and otherwise, in every forward',
        '1': 'its weight is no parameter but set from outside',
        '3': 'its weight is no parameter but set from outside',
    }
    assert [is_leaf(m) for m in model[:3]] == [False, False, True]


def test_a_parametrized_buffer_is_no_weight():
    layer = nn.Linear(3, 3)
    layer.register_buffer('count', torch.arange(3))
    parametrize.register_parametrization(layer, 'count', Same())
    assert fuse_weights(nn.Sequential(layer)) == ([], {})
    assert parametrize.is_parametrized(layer, 'count')


@pytest.mark.parametrize('wrap', WRAPS)
def test_a_copy_computes_the_same(wrap):
    """And nothing of it is shared."""
    model, x = net(wrap, 'linear')
    want = model(x)
    other = copy_model(model)
    assert torch.equal(other(x), want)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert torch.equal(model(x), want)


def test_nothing_to_fuse():
    with pytest.raises(PTQError, match=r"cannot fuse '0': none of its param"):
        FusedWeight('0').apply(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize('wrap', WRAPS)
def test_a_copy_is_fused_alone(wrap):
    torch.manual_seed(0)
    # no forward has run: what hooks compute still has a gradient
    model = nn.Sequential(WRAPS[wrap](nn.Conv2d(4, 6, 3))).eval()
    x = torch.randn(2, 4, 5, 6)
    copied = copy_model(model)
    edits, _ = fuse_weights(copied)
    assert edits == [FusedWeight('0')]
    with torch.no_grad():
        assert torch.equal(copied(x), model(x))
        # and the original can still be
        assert fuse_weights(model)[0] == edits
        assert torch.equal(copied(x), model(x))
    own = dict(copied.named_parameters())
    for name, parameter in model.named_parameters():
        assert own[name] is not parameter


@pytest.mark.parametrize('wrap', WRAPS)
def test_a_plain_model_takes_what_was_fused(wrap):
    """As after pruning by hand, of a model whose config has none."""
    model, x = net(wrap, 'conv')
    with torch.no_grad():
        edits, _ = fuse_weights(model)
        plain = nn.Sequential(LAYERS['conv'][0]()).eval()
        for edit in edits:
            edit.rebuild(plain)
        plain.load_state_dict(model.state_dict())
        assert torch.equal(plain(x), model(x))
