# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Inputs of norms that rules quantize, in a detector of one attention."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmdet_ptq import load_quantized, quantize_detector
from mmdet_ptq.apis import save_quantized
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers.twins import QuantLayerNorm
from mmdet_ptq.quant_cfg import load_recipe

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')
NORM = dict(match='@norm', act=dict(type='PowerOfTwoQuantizer'))


class Block(nn.Module):
    """A pre-norm and a residual."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return x + self.linear(self.norm(x))


class Normed(BaseModel):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Conv2d(3, 16, 4, stride=4)
        self.block = Block()
        self.bbox_head = nn.Linear(16, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.backbone(torch.stack(list(inputs)).float())
        return self.bbox_head(self.block(x.flatten(2).mT))


def batches(count=4):
    rng = torch.Generator().manual_seed(1)
    return [
        dict(
            inputs=[0.3 * torch.randn(3, 32, 32, generator=rng)],
            data_samples=[None],
        )
        for _ in range(count)
    ]


def quantized(*rules, recipe='minmax', **cfg):
    model = Normed().eval()
    cfg = dict(cfg, recipe=recipe, bits='w8a4', rules=list(rules))
    return quantize_detector(model, batches(), cfg)


def test_by_default_norms_are_no_layers():
    session = quantized()
    assert list(session.graph.layers) == [
        'backbone',
        'block.linear',
        'bbox_head',
    ]
    assert type(session.model.block.norm) is nn.LayerNorm
    assert session.edits == []


def scaled(session):
    """What can be scaled, by the modules that give and read it."""
    found, _ = session.graph.find_scalings()
    return [(s.kind, sorted(s.outputs), sorted(s.inputs)) for s in found]


def test_a_rule_makes_them_layers_and_changes_nothing_else():
    plain, session = quantized(), quantized(NORM)
    norm = session.layers['block.norm']
    assert type(norm) is QuantLayerNorm
    assert norm.weight_quantizer is None
    assert session.graph.layers['block.norm'].roles == {'head', 'norm'}
    plan = session.plan.layers['block.norm']
    assert plan.weight is None and plan.acts['input'].bits == 4
    # what a norm is for the graph it still is
    assert session.graph.norm_links == plain.graph.norm_links
    ours, theirs = (scaled(s) for s in (session, plain))
    assert ours == theirs != []
    units = {u.name: u.layers for u in session.graph.units}
    assert units['block'] == ('block.norm', 'block.linear')
    assert [u.name for u in plain.graph.units] == list(units)
    for name, node in plain.graph.layers.items():
        assert session.graph.layers[name].roles == node.roles
    rest = {n: session.plan.layers[n] for n in plain.plan.layers}
    assert rest == plain.plan.layers


def test_loaded_it_gives_the_same(tmp_path):
    session = quantized(NORM)
    save_quantized(session, tmp_path / 'q.pth')
    model = load_quantized(Normed().eval(), tmp_path / 'q.pth')
    assert type(model.block.norm) is QuantLayerNorm
    x = batches()[0]['inputs']
    assert torch.equal(model(x), session.model(x))
    exponents = session.layers['block.norm'].act_quantizers['input'].exponents
    assert torch.equal(
        model.block.norm.act_quantizers['input'].exponents, exponents
    )


@pytest.mark.parametrize('recipe', ['repq_vit', 'brecq', 'gptq'])
def test_with_passes_that_know_norms_or_layers(recipe):
    short = dict(Reconstruct=dict(iters=2, batch_size=1))
    short = {
        k: v
        for k, v in short.items()
        if k in [p['type'] for p in load_recipe(recipe)['passes']]
    }
    act = dict(type='UniformQuantizer', granularity='channel')
    rule = dict(match='@norm', act=act)
    session = quantized(rule, recipe=recipe, pass_args=short)
    x = batches()[0]['inputs']
    assert session.layers['block.norm'].act_quantizers['input'].initialized
    assert torch.isfinite(session.model(x)).all()


def test_a_search_of_scales_leaves_them():
    rule = dict(match='@norm', act=dict(type='UniformQuantizer'))
    search = dict(type='SearchScales', count=16, steps=1)
    passes = [*load_recipe('minmax')['passes'], search]
    session = quantized(rule, passes=passes)
    assert any(
        'norms keep their grids: block.norm' in n for n in session.notes
    )
    assert ['block.linear'] in [r.layers for r in session.records]


def test_globs_name_norms_where_a_rule_does():
    rule = dict(match='block.norm', act=dict(bits=8))
    session = quantized(NORM, rule)
    assert session.plan.layers['block.norm'].acts['input'].bits == 8
    with pytest.raises(QuantConfigError, match='matches no quantizable layer'):
        quantized(rule)
    for before in ([NORM], []):
        with pytest.raises(QuantConfigError, match='changes nothing'):
            quantized(*before, dict(match='@norm', weight=dict(bits=8)))


def test_a_norm_that_only_rules_skip_stays():
    session = quantized(dict(match='@norm', skip=True))
    assert type(session.model.block.norm) is nn.LayerNorm
    assert copy.deepcopy(session.edits) == []
