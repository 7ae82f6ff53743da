# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules on hand-made graphs, against plans written by hand."""

from dataclasses import replace

import pytest
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.wrappers import Linear as MMCVLinear
from plan_kit import BOTH, U, graph, node, plan
from reconstruct_model import INIT, RULES, Net, batches
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.plan import check_globs, make_plan, unmatched_rules
from mmdet_ptq.quant_cfg import parse_quant_cfg, recipe_names
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import QUANTIZERS
from mmdet_ptq.structures import QuantSpec


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
        dict(match='*', weight=dict(bits=8)),
        dict(match='backbone.*', weight=dict(bits=5)),
        dict(match='backbone.conv2', weight=dict(bits=3)),
    )
    assert [p.weight.bits for p in found.layers.values()] == [5, 3, 8]


def test_another_type_keeps_no_rows(small):
    """Rows are for grids that each image chooses."""
    rules = [
        BOTH,
        dict(
            match='*',
            act=dict(type='InstanceGroupQuantizer', granularity='row'),
        ),
        dict(match='head.*', act=dict(type='CodebookQuantizer')),
        dict(match='head.*', act=dict(bits=5)),
    ]
    acts = [
        layer.acts['input'] for layer in plan(small, *rules).layers.values()
    ]
    rest = [one for one in acts if one.type == 'InstanceGroupQuantizer']
    assert rest and all(one.args == dict(granularity='row') for one in rest)
    head = [one for one in acts if one.type == 'CodebookQuantizer']
    assert head and all((one.bits, one.args) == (5, {}) for one in head)


def test_another_type_keeps_bits_and_the_arguments_that_it_has_too(small):

    class OtherQuantizer(UniformQuantizer):
        def __init__(self, bits=8, granularity='tensor', role='act'):
            super().__init__(bits, granularity=granularity, role=role)

    QUANTIZERS.register_module(module=OtherQuantizer)
    try:
        found = plan(
            small,
            dict(
                match='*',
                weight=dict(granularity='channel', symmetric=True, bits=3),
            ),
            # the type that it has by default
            dict(match='*.conv1', weight=dict(type=U)),
            dict(
                match=['head.*', '*.conv2'], weight=dict(type='OtherQuantizer')
            ),
            dict(match='*.conv2', weight=dict(type=U)),
        )
    finally:
        QUANTIZERS.module_dict.pop('OtherQuantizer')
    assert found.layers['head.cls'].weight == QuantSpec(
        'OtherQuantizer', 3, dict(granularity='channel')
    )
    assert found.layers['backbone.conv1'].weight == QuantSpec(
        U, 3, dict(granularity='channel', symmetric=True)
    )
    # there and back again: what the type between has not is gone
    assert found.layers['backbone.conv2'].weight == QuantSpec(
        U, 3, dict(granularity='channel')
    )


def test_uniform_heads_of_a_recipe_with_others_stay_by_channel(heads):
    config = parse_quant_cfg(
        dict(
            recipe='reg_ptq',
            bits='w4a4',
            rules=[dict(match='@head', weight=dict(type=U))],
        )
    )
    found = make_plan(config, heads, {}).layers['head.conv']
    assert found.weight == QuantSpec(U, 4, dict(granularity='channel'))


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


def test_transposed_convolutions():
    plain, upward = node('conv', [[1]]), node('up', [[2]])
    for kind in (nn.ConvTranspose2d, wrappers.ConvTranspose2d):
        upward.cls = kind
        found = plan(
            graph(plain, upward), BOTH, dict(match='@transposed', skip=True)
        ).layers
        assert found['up'].why_float == 'rule @transposed: skip'
        assert found['conv'].weight == QuantSpec(U, 4)


def test_bits_of_none_are_those_of_quant_cfg(small):
    eight = dict(match='@stem', weight=dict(bits=8), act=dict(bits=8))
    back = dict(match='@stem', weight=dict(bits=None))
    stem = plan(small, BOTH, eight, back).layers['backbone.conv1']
    assert (stem.weight.bits, stem.acts['input'].bits) == (4, 8)
    both = dict(match='*', weight=dict(bits=3), act=dict(bits=3))
    with pytest.raises(QuantConfigError, match=r'conv1: no rule sets the b'):
        plan(small, BOTH, both, back, bits=None)


def test_linear_layers_of_any_class():
    nodes = [node(n, [[i]]) for i, n in enumerate(('a', 'b', 'c'))]
    nodes[1].cls, nodes[2].cls = nn.Linear, MMCVLinear
    found = plan(graph(*nodes), BOTH, dict(match='@linear', act=dict(bits=3)))
    bits = [one.acts['input'].bits for one in found.layers.values()]
    assert bits == [6, 3, 3]


PREDICTION_SKIP = dict(match='@prediction', skip=True)


@pytest.fixture
def heads(small):
    """Two layers of a head, the second of which predicts."""
    return graph(node('head.conv', [[9]], ['head']), small.layers['head.cls'])


def test_only_skip_false_lifts_a_skip(heads):
    config = parse_quant_cfg(
        dict(
            recipe='uniform',
            bits='w4a6',
            rules=[dict(match='@head', weight=dict(bits=3), act=dict(bits=8))],
        )
    )
    found = make_plan(config, heads, {}).layers
    assert found['head.cls'].weight is None
    assert found['head.cls'].acts == dict(input=None)
    assert found['head.cls'].why_float == 'rule @prediction: skip'
    # a layer of the head that is not skipped has what the rule says
    assert found['head.conv'].weight.bits == 3
    assert found['head.conv'].acts['input'].bits == 8


def test_what_rules_say_of_a_skipped_layer_counts_once_lifted(heads):
    found = plan(
        heads,
        dict(match='*', weight=dict(granularity='channel'), act={}),
        dict(match='@head', skip=True),
        dict(match='@head', act=dict(symmetric=True)),
        dict(match='*', weight=dict(bits=3), act=dict(bits=8)),
        dict(match='@prediction', skip=False),
    ).layers
    assert found['head.conv'].why_float == 'rule @head: skip'
    last = found['head.cls']
    assert last.why_float == ''
    assert last.weight == QuantSpec(U, 3, dict(granularity='channel'))
    assert last.acts['input'] == QuantSpec(U, 8, dict(symmetric=True))


def test_a_lifted_layer_can_be_skipped_again(heads):
    found = plan(
        heads,
        BOTH,
        dict(match='@head', skip=False, act=dict(bits=8)),
        PREDICTION_SKIP,
        dict(match='*', weight=dict(bits=2)),
    )
    assert found.layers['head.conv'].weight == QuantSpec(U, 2)
    assert found.layers['head.cls'].why_float == 'rule @prediction: skip'


def test_skip_of_single_ports():
    attention = graph(
        node(
            'pv',
            [[3, 4]],
            ['attention'],
            ports=('a', 'b'),
            params=0,
            port_roles=dict(a=['softmax']),
        )
    )
    attention_skip = dict(match='@attention', skip=True)
    softmax_lift = dict(match='@softmax', skip=False, act=dict(bits=8))
    found = plan(attention, BOTH, attention_skip, softmax_lift).layers['pv']
    assert found.acts == dict(a=QuantSpec(U, 8), b=None)
    # lifted as a whole: the port too
    other = dict(a=frozenset({'softmax'}))
    attention.layers['other'] = node(
        'other', [[3]], ports=('a',), port_roles=other, params=0
    )
    found = plan(
        attention,
        BOTH,
        dict(match='@softmax', act=dict(bits=3)),
        dict(match='@softmax', skip=True),
        dict(match='@attention', skip=False),
    ).layers['pv']
    assert found.acts == dict(a=QuantSpec(U, 3), b=QuantSpec(U, 6))
    # other ports of a layer with such a port are left alone
    found = plan(attention, BOTH, dict(match='@softmax', skip=True))
    assert found.layers['pv'].acts == dict(a=None, b=QuantSpec(U, 6))


@pytest.mark.parametrize(
    ('rules', 'says'),
    [
        # the trap: it looks as if predictions got 8 bits
        (
            [PREDICTION_SKIP, dict(match='@prediction', act=dict(bits=8))],
            ['rules[2]', '1 layers', 'skipped by @prediction', 'skip=False'],
        ),
        (
            [dict(match='head.*', weight=dict(bits=3)), PREDICTION_SKIP],
            ['rules[1]', 'head.* matches', 'skipped by @prediction'],
        ),
        # no later rule may take back all of it
        (
            [
                dict(match='@head', weight=dict(bits=3)),
                dict(match='*', weight=dict(bits=4)),
            ],
            ['rules[1]', '@head', 'later rules'],
        ),
        (
            [
                dict(match='@head', skip=True),
                dict(match='@prediction', skip=False),
            ],
            ['rules[1]', '@head', 'later rules'],
        ),
        (
            [
                dict(match='@head', weight=None),
                dict(match='head.cls', weight={}),
            ],
            ['rules[1]', 'later rules'],
        ),
    ],
)
def test_rules_that_change_nothing(small, rules, says):
    with pytest.raises(QuantConfigError) as error:
        plan(small, BOTH, *rules)
    assert all(one in str(error.value) for one in says), error.value


def test_weights_of_layers_without_any():
    products = graph(node('qk', [[1, 2]], ports=('a', 'b'), params=0))
    with pytest.raises(QuantConfigError, match=r'@matmul.*no such tensor'):
        plan(products, BOTH, dict(match='@matmul', weight=dict(bits=8)))


def test_rules_that_say_what_is_so_already(small):
    """One set of rules may serve several widths and recipes."""
    eight = dict(match='@backbone', act=dict(bits=8))
    assert plan(small, BOTH, eight, bits='w4a8') == plan(
        small, BOTH, bits='w4a8'
    )
    again = [dict(match='*', weight=dict(type=U)), PREDICTION_SKIP]
    assert plan(small, BOTH, PREDICTION_SKIP, *again) == plan(
        small, BOTH, PREDICTION_SKIP
    )


def test_rules_of_a_recipe_may_find_nothing_to_do(small):
    only = graph(small.layers['head.cls'])
    config = parse_quant_cfg(
        dict(
            recipe='reg_ptq',
            bits='w4a4',
            rules=[dict(match='@prediction', skip=False)],
        )
    )
    found = make_plan(config, only, {}).layers['head.cls']
    assert found.weight.type == 'LLAQuantizer'
    # its rule on heads finds nothing but a skipped layer
    config = parse_quant_cfg(dict(recipe='reg_ptq', bits='w4a4'))
    assert make_plan(config, only, {}).layers['head.cls'].weight is None


def test_roles_that_a_detector_lacks_are_told(small):
    config = parse_quant_cfg(
        dict(
            recipe='uniform',
            bits='w8a8',
            rules=[
                dict(match='neck.*', act=dict(bits=8)),
                dict(match='@head', act=dict(bits=8), skip=False),
                dict(match=['@mask', '@rpn'], skip=True),
                dict(match=['@mask', '@stem'], act=dict(bits=7)),
            ],
        )
    )
    make_plan(config, small, {})
    notes = unmatched_rules(config, small)
    assert [n.partition(' matches')[0] for n in notes] == [
        'rules[0]: neck.*',
        'rules[2]: @mask @rpn',
    ]
    config = parse_quant_cfg(dict(recipe='group_static', bits='w8a8'))
    (note,) = unmatched_rules(config, small)
    assert '@linear matches no layer' in note


def test_none_keeps_one_side_float(small):
    found = plan(small, BOTH, dict(match='head.*', act=None))
    assert found.layers['head.cls'].acts == dict(input=None)
    assert found.layers['head.cls'].weight == QuantSpec(U, 4)
    found = plan(small, BOTH, dict(match='head.*', act=None, weight=None))
    assert found.layers['head.cls'].why_float == 'rules leave it float'


def test_globs(small):
    config = parse_quant_cfg(
        dict(
            recipe='minmax',
            rules=[dict(match=['backbone.*', 'head.cl'], skip=True)],
        )
    )
    # counted among the user's own rules, not the recipe's
    with pytest.raises(
        QuantConfigError,
        match=r"^rules\[0\].*'head\.cl'.*Did you mean 'head\.cls'",
    ):
        check_globs(config, small.layers)


def test_a_run_notes_what_its_rules_did_not_find():
    rules = [*RULES, dict(match='@mask', skip=True)]
    session = quantize_detector(
        Net().eval(), batches(2), dict(bits='w8a8', rules=rules, passes=INIT)
    )
    (note,) = [n for n in session.notes if n.startswith('rules[')]
    assert note.startswith('rules[2]: @mask matches no layer')


def _tip(graph, recipe, *rules):
    config = parse_quant_cfg(
        dict(recipe=recipe, bits='w4a4', rules=list(rules))
    )
    return make_plan(config, graph, {}).layers


@pytest.mark.parametrize('recipe', recipe_names())
def test_the_tips_of_the_documentation(heads, recipe):
    """More bits change bits: not granularity, not what is float."""
    plain = _tip(heads, recipe)
    tip = _tip(heads, recipe, dict(match='@head', act=dict(bits=8)))
    assert plain['head.conv'].acts['input'].bits == 4
    assert tip['head.conv'].weight == plain['head.conv'].weight
    assert tip['head.conv'].acts['input'] == replace(
        plain['head.conv'].acts['input'], bits=8
    )
    assert tip['head.cls'] == plain['head.cls']
    assert plain['head.cls'].why_float
    lifting = dict(match='@prediction', skip=False, act=dict(bits=8))
    lifted = _tip(heads, recipe, dict(lifting, weight=dict(bits=3)))
    assert lifted['head.cls'].weight == replace(
        plain['head.conv'].weight, bits=3
    )
    assert lifted['head.cls'].acts == tip['head.conv'].acts
    assert lifted['head.conv'] == plain['head.conv']


def test_what_none_left_float_goes_on_from_what_came_before(small):
    found = plan(
        small,
        dict(
            match='*',
            weight=dict(granularity='channel'),
            act=dict(symmetric=True),
        ),
        dict(match='*', weight=None, act=None),
        dict(match='head.*', act=dict(bits=8)),
        dict(match='backbone.conv2', weight=dict(bits=3)),
    ).layers
    assert found['head.cls'].weight is None
    assert found['head.cls'].acts['input'] == QuantSpec(
        U, 8, dict(symmetric=True)
    )
    assert found['backbone.conv2'].weight == QuantSpec(
        U, 3, dict(granularity='channel')
    )
    assert found['backbone.conv1'].why_float == 'rules leave it float'
