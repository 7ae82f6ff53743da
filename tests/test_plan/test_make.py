# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules on hand-made graphs, against plans written by hand."""

import pytest
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.plan import check_globs, make_plan
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import QUANTIZERS
from mmdet_ptq.structures import LayerGraph, LayerNode, Op, QuantSpec

U = 'UniformQuantizer'
BOTH = dict(match='*', weight=dict(type=U), act=dict(type=U))


def node(
    name,
    reads,
    roles=(),
    groups=1,
    ports=('input',),
    port_roles=None,
    params=1,
):
    """A layer that reads these values, one tuple a call."""
    calls = [
        Op(i, 'conv2d', name, '', tuple(values), (100 + i,))
        for i, values in enumerate(reads)
    ]
    return LayerNode(
        name,
        nn.Conv2d,
        calls,
        ports,
        frozenset(roles),
        {k: frozenset(v) for k, v in (port_roles or {}).items()},
        groups,
        params,
    )


def graph(*nodes, shared=None):
    layers = {n.name: n for n in nodes}
    if shared is None:
        shared = [[(n.name, p)] for n in nodes for p in n.ports]
    return LayerGraph([], {}, layers, {}, [], shared, [], [], ())


@pytest.fixture
def small():
    return graph(
        node('backbone.conv1', [[1]], ['stem', 'backbone']),
        node('backbone.conv2', [[2]], ['backbone'], groups=8),
        node('head.cls', [[3], [4]], ['head', 'prediction']),
    )


def plan(graph, *rules, bits='w4a6', uncovered=None):
    config = parse_quant_cfg(
        dict(
            rules=list(rules),
            passes=[dict(type='Observe')],
            **(dict(bits=bits) if bits else {}),
        )
    )
    return make_plan(config, graph, uncovered or {})


def test_defaults(small):
    found = plan(small, BOTH)
    assert list(found.layers) == list(small.layers)
    for layer in found.layers.values():
        assert layer.weight == QuantSpec(U, 4)
        assert layer.acts == dict(input=QuantSpec(U, 6))
        assert layer.why_float == ''
    assert found.groups == [[(n, 'input')] for n in small.layers]


def test_later_rule_changes_only_what_it_says(small):
    found = plan(
        small,
        dict(
            match='*',
            weight=dict(type=U, granularity='channel'),
            act=dict(type=U, symmetric=True),
        ),
        dict(match='backbone.*', weight=dict(bits=8)),
        dict(match='backbone.conv2', act=dict(symmetric=False, bits=3)),
    )
    assert found.layers['backbone.conv2'].weight == QuantSpec(
        U, 8, dict(granularity='channel')
    )
    assert found.layers['backbone.conv1'].acts['input'] == QuantSpec(
        U, 6, dict(symmetric=True)
    )
    assert found.layers['backbone.conv2'].acts['input'] == QuantSpec(
        U, 3, dict(symmetric=False)
    )
    assert found.layers['head.cls'].weight.bits == 4


def test_last_rule_wins(small):
    found = plan(
        small,
        BOTH,
        dict(match='backbone.*', weight=dict(bits=8)),
        dict(match='*', weight=dict(bits=5)),
    )
    assert {p.weight.bits for p in found.layers.values()} == {5}


def test_another_type_drops_arguments_but_not_bits(small):

    class OtherQuantizer(UniformQuantizer):
        pass

    QUANTIZERS.register_module(module=OtherQuantizer)
    try:
        found = plan(
            small,
            dict(
                match='*', weight=dict(type=U, granularity='channel', bits=3)
            ),
            dict(match='head.*', weight=dict(type='OtherQuantizer')),
            dict(match='@backbone', weight=dict(type=U)),
        )
    finally:
        QUANTIZERS.module_dict.pop('OtherQuantizer')
    assert found.layers['head.cls'].weight == QuantSpec('OtherQuantizer', 3)
    assert found.layers['backbone.conv1'].weight == QuantSpec(
        U, 3, dict(granularity='channel')
    )


def test_roles(small):
    found = plan(
        small,
        BOTH,
        dict(match='@stem', weight=dict(bits=8), act=dict(bits=8)),
        dict(match='@grouped', act=dict(granularity='group')),
        dict(match=['@prediction', '@offset'], skip=True),
    )
    stem = found.layers['backbone.conv1']
    assert (stem.weight.bits, stem.acts['input'].bits) == (8, 8)
    # the size of a convolution's own groups is known only to the layer
    assert found.layers['backbone.conv2'].acts['input'] == QuantSpec(
        U, 6, dict(granularity='group', group_size='conv')
    )
    last = found.layers['head.cls']
    assert last.weight is None
    assert last.acts == dict(input=None)
    assert last.why_float == 'rule @prediction: skip'
    assert [g[0][0] for g in found.groups] == [
        'backbone.conv1',
        'backbone.conv2',
    ]


def test_skip_can_be_undone(small):
    found = plan(
        small,
        BOTH,
        dict(match='*', skip=True),
        dict(match='head.*', weight=dict(type=U)),
    )
    assert found.layers['head.cls'].weight == QuantSpec(U, 4)
    assert found.layers['head.cls'].acts == dict(input=None)
    assert found.layers['head.cls'].why_float == ''
    assert found.layers['backbone.conv1'].why_float == 'rule *: skip'


def test_none_keeps_one_side_float(small):
    found = plan(small, BOTH, dict(match='head.*', act=None))
    assert found.layers['head.cls'].acts == dict(input=None)
    assert found.layers['head.cls'].weight == QuantSpec(U, 4)
    found = plan(small, BOTH, dict(match='head.*', act=None, weight=None))
    assert found.layers['head.cls'].why_float == 'rules leave it float'


def test_unmatched_layer_stays_float(small):
    found = plan(small, dict(match='backbone.*', weight=dict(type=U)))
    assert found.layers['head.cls'].why_float == 'no rule matches it'
    assert found.groups == []


def test_softmax_bits():
    attention = graph(
        node('qk', [[1, 2]], ['attention'], ports=('a', 'b'), params=0),
        node(
            'pv',
            [[3, 4]],
            ['attention'],
            ports=('a', 'b'),
            params=0,
            port_roles=dict(a=['softmax']),
        ),
    )
    found = plan(attention, BOTH, bits='w4a4s8')
    assert {p: s.bits for p, s in found.layers['pv'].acts.items()} == dict(
        a=8, b=4
    )
    assert {s.bits for s in found.layers['qk'].acts.values()} == {4}
    assert found.layers['pv'].weight is None
    # a rule on the port alone, which leaves the other port as it is
    found = plan(
        attention,
        BOTH,
        dict(match='@softmax', act=dict(bits=3)),
        bits='w4a4s8',
    )
    assert found.layers['pv'].acts == dict(
        a=QuantSpec(U, 3), b=QuantSpec(U, 4)
    )
    found = plan(
        attention, BOTH, dict(match='@softmax', skip=True), bits='w4a4s8'
    )
    assert found.layers['pv'].acts == dict(a=None, b=QuantSpec(U, 4))
    assert found.layers['pv'].why_float == ''


def shared_graph(reads_b=((1,),)):
    return graph(
        node('a', [[1]]),
        node('b', reads_b),
        shared=[[('a', 'input'), ('b', 'input')]],
    )


def test_shared_tensors_share_a_quantizer():
    found = plan(shared_graph(), BOTH)
    assert found.groups == [[('a', 'input'), ('b', 'input')]]


@pytest.mark.parametrize(
    'rule',
    [
        dict(match='b', act=dict(bits=3)),
        dict(match='b', act=dict(symmetric=True)),
    ],
)
def test_other_specs_do_not_share(rule):
    found = plan(shared_graph(), BOTH, rule)
    assert found.groups == [[('a', 'input')], [('b', 'input')]]


def test_float_port_leaves_its_group():
    found = plan(shared_graph(), BOTH, dict(match='a', act=None))
    assert found.groups == [[('b', 'input')]]


def test_levels_share_only_call_by_call():
    rule = dict(match='*', act=dict(type=U, per_level=True))
    head = [node('cls', [[1], [2]]), node('reg', [[1], [2]])]
    shared = [[('cls', 'input'), ('reg', 'input')]]
    assert plan(graph(*head, shared=shared), rule).groups == shared
    # the second reads the levels in another order: its level 0 is another
    head[1] = node('reg', [[2], [1]])
    assert plan(graph(*head, shared=shared), rule).groups == [
        [('cls', 'input')],
        [('reg', 'input')],
    ]
    assert plan(graph(*head, shared=shared), BOTH).groups == shared


def test_groups_of_other_sizes_do_not_share():
    layers = [node('a', [[1]], groups=4), node('b', [[1]], groups=8)]
    shared = [[('a', 'input'), ('b', 'input')]]
    rule = dict(match='*', act=dict(type=U, granularity='group'))
    assert len(plan(graph(*layers, shared=shared), rule).groups) == 2
    assert len(plan(graph(*layers, shared=shared), BOTH).groups) == 1


def test_no_bits_anywhere(small):
    with pytest.raises(QuantConfigError, match=r'backbone\.conv1.*bits'):
        plan(small, BOTH, bits=None)
    both = dict(match='*', weight=dict(bits=4), act=dict(bits=4))
    assert plan(small, both, bits=None).layers['head.cls'].weight.bits == 4


def test_uncovered_is_kept(small):
    assert plan(small, BOTH, uncovered=dict(x='no twin')).uncovered == dict(
        x='no twin'
    )


def test_globs(small):
    config = parse_quant_cfg(
        dict(
            recipe='minmax',
            rules=[dict(match=['backbone.*', 'head.cl'], skip=True)],
        )
    )
    with pytest.raises(
        QuantConfigError, match=r"'head\.cl'.*Did you mean 'head\.cls'"
    ):
        check_globs(config, small.layers)
