# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""One quantizer replaced; model and plan stay as they are elsewhere."""

import pytest
import torch
from two_levels import PASSES, RULES, Tiny, batches

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import named_tensors
from mmdet_ptq.passes import BasePass
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import PASSES as REGISTRY
from mmdet_ptq.structures import QuantSpec

SPEC = QuantSpec('UniformQuantizer', 3, dict(granularity='channel'))


@pytest.fixture
def in_a_pass():
    """Runs a function on the session, after the ranges are set."""
    seen = []

    class Look(BasePass):
        def run(self, session):
            seen[0](session)

    REGISTRY.register_module(module=Look)

    def run(function):
        seen[:] = [function]
        model = Tiny().eval()
        passes = [*PASSES, dict(type='Look')]
        cfg = dict(bits='w4a4', rules=RULES, passes=passes)
        return model, quantize_detector(model, batches(), cfg)

    yield run
    REGISTRY.module_dict.pop('Look')


def test_weight(in_a_pass):
    def look(session):
        layer = session.layers['bbox_head.0']
        before = named_tensors(session.model)
        old = layer.weight_quantizer
        new = session.replace('bbox_head.0', 'weight', SPEC)
        assert new is layer.weight_quantizer is not old
        assert new.bits == 3 and not new.initialized
        assert session.plan.layers['bbox_head.0'].weight == SPEC
        after = named_tensors(session.model)
        other = [n for n in before if not n.startswith('bbox_head.0.weight_q')]
        assert all(torch.equal(before[n], after[n]) for n in other)
        new.set_range(*old.range())

    model, _ = in_a_pass(look)
    values = model.bbox_head[0].weight[0].unique()
    assert len(values) <= 8


def test_shared_port_gets_one_of_its_own(in_a_pass):
    """What feeds the head at level 0 also feeds the side branch."""

    def look(session):
        shared = session.layers['side'].act_quantizers['input']
        assert session.layers['bbox_head.0'].act_quantizers['input'] is shared
        new = session.replace('side', 'input', QuantSpec(SPEC.type, 2))
        assert session.layers['side'].act_quantizers['input'] is new
        assert session.layers['bbox_head.0'].act_quantizers['input'] is shared
        assert shared.initialized and not new.initialized
        groups = session.plan.groups
        assert [('bbox_head.0', 'input')] in groups
        assert [('side', 'input')] in groups
        new.set_range(torch.tensor([0.0]), torch.tensor([3.0]))

    model, session = in_a_pass(look)
    assert model.side.act_quantizers['input'].bits == 2
    assert session.plan.layers['side'].acts['input'].bits == 2


def test_float(in_a_pass):
    def look(session):
        assert session.replace('side', 'input', None) is None
        assert session.plan.layers['side'].why_float == ''
        assert session.replace('side', 'weight', None) is None
        assert session.plan.layers['side'].why_float

    model, session = in_a_pass(look)
    assert torch.equal(model.side.weight, Tiny().side.weight)
    assert not model.side.act_quantizers
    assert not any(('side', 'input') in g for g in session.plan.groups)
    kinds = {type(q) for q in model.bbox_head[0].act_quantizers.values()}
    assert kinds == {UniformQuantizer}


@pytest.mark.parametrize(
    'layer, tensor, spec, match',
    [
        ('bbox_head.1', 'weight', SPEC, "'bbox_head.1'.*Did you mean"),
        ('side', 'output', SPEC, "'output'.*Allowed: input, weight"),
        ('side', 'weight', QuantSpec('Uniform', 3), 'UniformQuantizer'),
        ('side', 'weight', QuantSpec(SPEC.type, 9), 'bits'),
    ],
)
def test_mistakes_change_nothing(in_a_pass, layer, tensor, spec, match):
    def look(session):
        before = named_tensors(session.model)
        groups = [list(g) for g in session.plan.groups]
        with pytest.raises(QuantConfigError, match=match):
            session.replace(layer, tensor, spec)
        assert named_tensors(session.model).keys() == before.keys()
        assert session.plan.groups == groups

    in_a_pass(look)


def test_readers_of_one_input_together(in_a_pass):
    """They share the new quantizer, and stay a group."""

    def look(session):
        group = next(g for g in session.plan.groups if ('side', 'input') in g)
        assert ('bbox_head.0', 'input') in group
        before = [list(g) for g in session.plan.groups]
        with pytest.raises(QuantConfigError, match='do not share'):
            session.replace_group(group[:1], SPEC)
        new = session.replace_group(group, QuantSpec(SPEC.type, 2))
        for name, port in group:
            layer = session.layers[name]
            assert layer.act_quantizers[port] is new
            assert session.plan.layers[name].acts[port].bits == 2
        assert session.plan.groups == before
        new.set_range(torch.tensor([0.0]), torch.tensor([3.0]))

    model, _ = in_a_pass(look)
    shared = model.side.act_quantizers['input']
    assert model.bbox_head[0].act_quantizers['input'] is shared
    assert shared.bits == 2


def test_only_grids_of_each_image_have_groups(in_a_pass):
    def regroup(session):
        with pytest.raises(QuantConfigError, match='has no number of groups'):
            session.regroup(session.plan.groups[0], 4)

    in_a_pass(regroup)
