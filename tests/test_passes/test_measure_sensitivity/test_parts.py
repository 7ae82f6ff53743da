# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers are looked at together."""

from plan_kit import graph, node, plan
from sensitivity_kit import Attentive, at_the_end

from mmdet_ptq.passes.measure_sensitivity import find_parts

EVERY = [dict(match='*', weight={}, act={})]


def parts_of(session):
    return find_parts(session.graph, session.plan)


def test_queries_keys_and_values_are_one_part():
    """Values read another tensor, and feed another product."""
    found = at_the_end(parts_of, net=Attentive, rules=EVERY)
    parts = {part.name: part for part in found}
    names = ('q_proj', 'k_proj', 'v_proj')
    group = parts['attn.{q_proj,k_proj,v_proj}']
    assert group.layers == tuple(f'attn.{n}' for n in names)
    assert group.weights == group.acts == group.layers
    # products have no weight, and stay parts of their own
    products = [p for p in found if not p.is_role and not p.weights]
    assert len(products) == 2 and all(p.acts for p in products)
    single = [p for p in found if not p.is_role]
    layers = [n for p in single for n in p.layers]
    assert len(layers) == len(set(layers)) == 8
    # of the roles, those that say more than a part alone does
    assert parts['@matmul'].layers == tuple(p.name for p in products)
    assert '@stem' not in parts and '@prediction' not in parts


def test_layers_side_by_side_are_apart():
    """Only attention groups: a head's towers may read the same tensor."""
    names = ('backbone.a', 'head.b', 'head.c')
    nodes = [node(name, [(1,)]) for name in names]
    shared = [[('backbone.a', 'input')], [('head.b', 'input')]]
    shared[1].append(('head.c', 'input'))
    found = graph(*nodes, shared=shared)
    parts = find_parts(found, plan(found, dict(match='*', weight={}, act={})))
    assert [p.layers for p in parts[:3]] == [
        ('backbone.a',),
        ('head.b',),
        ('head.c',),
    ]


def test_what_is_float_is_no_part():
    names = ('backbone.a', 'backbone.b', 'neck.c')
    found = graph(*(node(name, [(1,)]) for name in names))
    rules = [
        dict(match='*', weight={}, act={}),
        dict(match='backbone.a', act=None),
        dict(match='neck.*', skip=True),
    ]
    parts = find_parts(found, plan(found, *rules))
    assert [(p.name, p.weights, p.acts) for p in parts] == [
        ('backbone.a', ('backbone.a',), ()),
        ('backbone.b', ('backbone.b',), ('backbone.b',)),
    ]
