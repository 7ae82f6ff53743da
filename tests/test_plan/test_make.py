# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Plans of hand-made graphs: widths, groups, what stays float."""

import pytest
from plan_kit import BOTH, U, graph, node, plan
from torch import nn

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import MatMul
from mmdet_ptq.plan import check_globs
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.structures import QuantSpec


def test_defaults(small):
    found = plan(small, BOTH)
    assert list(found.layers) == list(small.layers)
    for layer in found.layers.values():
        assert layer.weight == QuantSpec(U, 4)
        assert layer.acts == dict(input=QuantSpec(U, 6))
        assert layer.why_float == ''
    assert found.groups == [[(n, 'input')] for n in small.layers]


def test_widths_that_a_quantizer_lacks(small):
    """Where rules leave a doubt, the plan finds them, by the layer."""
    subset = dict(match='@backbone', weight=dict(type='SubsetQuantizer'))
    five = dict(match='*', weight=dict(bits=5))
    for rules, bits in (([subset, five], 'w4a6'), ([five, subset], 'w3a3')):
        with pytest.raises(QuantConfigError) as error:
            plan(small, BOTH, *rules, bits=bits)
        for part in (
            'backbone.conv1.weight',
            'SubsetQuantizer must be 2, 3 or 4, got 5',
            'another quantizer',
        ):
            assert part in str(error.value)
    lower = dict(match='@backbone', weight=dict(bits=2))
    found = plan(small, BOTH, five, subset, lower).layers
    assert found['backbone.conv1'].weight == QuantSpec('SubsetQuantizer', 2)
    # a layer that stays float has no width to be wrong
    skip = dict(match='@backbone', skip=True)
    with pytest.raises(QuantConfigError, match=r'rules\[1\].*changes nothing'):
        plan(small, BOTH, subset, five, skip)
    plan(
        small,
        BOTH,
        dict(match='*', weight=subset['weight']),
        skip,
        dict(match='head.*', weight=dict(bits=4)),
        bits='w8a8',
    )


def test_unmatched_layer_stays_float(small):
    found = plan(small, dict(match='backbone.*', weight=dict(type=U)))
    assert found.layers['head.cls'].why_float == 'no rule matches it'
    assert found.groups == []


def attention_graph():
    return graph(
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


def test_softmax_bits():
    attention = attention_graph()
    found = plan(attention, BOTH, bits='w4a4s8')
    assert {p: s.bits for p, s in found.layers['pv'].acts.items()} == dict(
        a=8, b=4
    )
    assert {s.bits for s in found.layers['qk'].acts.values()} == {4}
    assert found.layers['pv'].weight is None
    # a rule on the port alone, which leaves the other port as it is
    three = dict(match='@softmax', act=dict(bits=3))
    found = plan(attention, BOTH, three, bits='w4a4')
    assert found.layers['pv'].acts == dict(
        a=QuantSpec(U, 3), b=QuantSpec(U, 4)
    )
    # and back to what the string says
    back = dict(match='@softmax', act=dict(bits=None))
    three['act']['symmetric'] = True
    found = plan(attention, BOTH, three, back, bits='w4a4s8')
    assert found.layers['pv'].acts['a'] == QuantSpec(
        U, 8, dict(symmetric=True)
    )
    found = plan(
        attention, BOTH, dict(match='@softmax', skip=True), bits='w4a4'
    )
    assert found.layers['pv'].acts == dict(a=None, b=QuantSpec(U, 4))
    assert found.layers['pv'].why_float == ''


@pytest.mark.parametrize(
    'rule',
    [
        dict(match='@softmax', act=dict(bits=3)),
        dict(match='*', act=dict(bits=3)),
        dict(match='@softmax', skip=True),
        dict(match='pv', act=None),
    ],
)
def test_softmax_bits_that_rules_take_away(rule):
    """A width of its own that is nowhere: nobody can mean that."""
    attention = attention_graph()
    with pytest.raises(QuantConfigError) as error:
        plan(attention, BOTH, rule, bits='w4a4s8')
    for part in ("bits 'w4a4s8'", 'pv.a', 'leave s8 out', "'w4a4'"):
        assert part in str(error.value), error.value
    # the width of all activations is asked of no softmax
    if rule.get('act', 1) is not None:
        plan(attention, BOTH, rule, bits='w4a4')


def test_softmax_bits_without_a_softmax(small):
    with pytest.raises(QuantConfigError) as error:
        plan(small, BOTH, bits='w4a4s3')
    for part in ("bits 'w4a4s3'", 'no softmax', "bits='w4a4'"):
        assert part in str(error.value), error.value
    assert plan(small, BOTH, bits='w4a4s4') == plan(small, BOTH, bits='w4a4')


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


@pytest.mark.parametrize('kind', [U, 'InstanceGroupQuantizer'])
def test_other_axes_of_channels_do_not_share(kind):
    """A convolution and a linear layer count channels from other ends."""
    nodes = [node('a', [[1]]), node('b', [[1]])]
    nodes[1].cls = nn.Linear
    shared = [[('a', 'input'), ('b', 'input')]]
    rule = dict(match='*', act=dict(type=kind))
    found = plan(graph(*nodes, shared=shared), BOTH, rule)
    assert len(found.groups) == (1 if kind == U else 2)


def test_rows_of_both_operands_do_not_share():
    """What a product sums up lies along another axis of its second one."""
    nodes = [node(n, [[1, 2]], ports=('a', 'b'), params=0) for n in 'xyz']
    for one in nodes:
        one.cls = MatMul
    shared = [[('x', 'a'), ('y', 'a'), ('z', 'b')]]
    rule = dict(match='*', act=dict(type='InstanceGroupQuantizer'))
    assert len(plan(graph(*nodes, shared=shared), rule).groups) == 1
    rule['act']['granularity'] = 'row'
    found = plan(graph(*nodes, shared=shared), rule)
    assert found.groups == [[('x', 'a'), ('y', 'a')], [('z', 'b')]]


def test_no_bits_anywhere(small):
    with pytest.raises(QuantConfigError, match=r'backbone\.conv1.*bits'):
        plan(small, BOTH, bits=None)
    both = dict(match='*', weight=dict(bits=4), act=dict(bits=4))
    assert plan(small, both, bits=None).layers['head.cls'].weight.bits == 4


def test_uncovered_is_kept(small):
    assert plan(small, BOTH, uncovered=dict(x='no twin')).uncovered == dict(
        x='no twin'
    )


@pytest.mark.parametrize(
    ('glob', 'says'),
    [
        ('neck', "'neck' is the name of a part; 'neck.*' matches the 2"),
        ('neck.', "'neck.*' matches the 2 layers in it"),
        ('neck.lateral', "'neck.lateral.*' matches the 1 layers in it"),
        ('nek.out', "unknown layer 'nek.out'. Did you mean 'neck.out'?"),
    ],
)
def test_a_glob_that_matches_nothing_is_told_what_would(glob, says):
    names = ['backbone.conv1', 'neck.lateral.conv', 'neck.out']
    config = parse_quant_cfg(
        dict(recipe='minmax', rules=[dict(match=glob, skip=True)])
    )
    with pytest.raises(QuantConfigError) as error:
        check_globs(config, names)
    assert str(error.value).startswith('rules[0]: ') and says in str(
        error.value
    )
