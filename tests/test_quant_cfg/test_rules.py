# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules that are refused before any forward."""

import re

import pytest
from cfg_kit import PASSES

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.quant_cfg import load_recipe, parse_quant_cfg
from mmdet_ptq.quantizers import UniformQuantizer
from mmdet_ptq.registry import QUANTIZERS


@pytest.fixture
def toy():
    """A second quantizer, with an argument of its own."""

    class ToyQuantizer(UniformQuantizer):
        def __init__(self, bits=8, knob=1, role='act', axis=None):
            super().__init__(bits, role=role, axis=axis)

    QUANTIZERS.register_module(module=ToyQuantizer)
    yield
    QUANTIZERS.module_dict.pop('ToyQuantizer')


def test_arguments_of_an_earlier_type(toy):
    typed = dict(match='*', weight=dict(type='ToyQuantizer'))
    more = dict(match='@head', weight=dict(knob=3))
    parse_quant_cfg(dict(rules=[typed, more], passes=PASSES))
    with pytest.raises(QuantConfigError, match=r"rules\[0\].*'knob'"):
        parse_quant_cfg(dict(rules=[more, typed], passes=PASSES))
    wrong = dict(match='@head', act=dict(knob=3))
    with pytest.raises(QuantConfigError, match=r"rules\[1\]\.act.*'knob'"):
        parse_quant_cfg(dict(rules=[typed, wrong], passes=PASSES))


SUBSET = dict(type='SubsetQuantizer')


def test_widths_that_a_named_quantizer_lacks():
    rule = dict(match='*', weight=dict(SUBSET, bits=8))
    with pytest.raises(QuantConfigError) as error:
        parse_quant_cfg(dict(recipe='subsetq', rules=[rule]))
    # counted among the user's rules
    assert str(error.value).startswith('rules[0].weight: ')
    assert 'SubsetQuantizer must be 2, 3 or 4, got 8' in str(error.value)


@pytest.mark.parametrize(
    ('rules', 'bits', 'ok'),
    [
        ([dict(match='*', weight=SUBSET)], 'w4a8', True),
        ([dict(match='*', weight=SUBSET)], 'w5a8', False),
        ([dict(match='*', weight=SUBSET)], None, True),
        # what other rules may change is left to the plan
        (
            [
                dict(match='*', weight=SUBSET),
                dict(match='@head', weight=dict(bits=3)),
            ],
            'w8a8',
            True,
        ),
        (
            [
                dict(match='@head', weight=dict(bits=3)),
                dict(match='*', weight=SUBSET),
            ],
            'w8a8',
            True,
        ),
        (
            [
                dict(match='*', weight=SUBSET),
                dict(match='*', weight=dict(type='UniformQuantizer')),
            ],
            'w8a8',
            True,
        ),
        # bits of another kind of tensor change nothing
        (
            [dict(match='*', weight=SUBSET, act=dict(bits=4))],
            'w8a8',
            False,
        ),
    ],
)
def test_default_widths_that_a_quantizer_lacks(rules, bits, ok):
    cfg = dict(rules=rules, passes=PASSES, bits=bits)
    if ok:
        parse_quant_cfg(cfg)
        return
    with pytest.raises(QuantConfigError, match=r'^rules\[0\]\.weight.*3 or 4'):
        parse_quant_cfg(cfg)


def test_places_of_rules():
    config = parse_quant_cfg(
        dict(recipe='minmax', rules=[dict(match='@head', skip=True)])
    )
    count = len(load_recipe('minmax')['rules'])
    assert config.place(count) == 'rules[0]'
    assert config.place(1) == 'recipe minmax: rules[1]'
    assert config.own_rules() == [(count, dict(match='@head', skip=True))]


@pytest.mark.parametrize(
    ('rule', 'says'),
    [
        (dict(skip=True, act=dict(bits=4)), 'skip=True.*act=.*one of them'),
        (dict(skip=True, weight={}), 'skip=True.*weight=.*one of them'),
        (dict(weight=dict(axis=1)), r"weight: 'axis' follows.*remove"),
        (dict(act=dict(axis=0)), r"act: 'axis' follows.*remove"),
        (dict(act=dict(role='weight')), r"act: 'role' follows.*remove"),
        (dict(weight=dict(per_level=True)), "'per_level' is for act"),
        (dict(act=dict(per_level='no')), 'per_level must be True or False'),
        (dict(act=dict(symmetric='no')), 'symmetric must be True or False'),
        (dict(act=dict(group_size='1/0')), "group_size='1/0' must be a num"),
        (dict(act=dict(group_size='x')), "such as '1/8'"),
        (dict(weight=dict(group_size='1/8')), 'or, for act, a share'),
        (dict(act=dict(num_groups=2)), "'num_groups'"),
        (
            dict(weight=dict(type='InstanceGroupQuantizer')),
            'a weight is the same for every image',
        ),
    ],
)
def test_rules_that_nobody_can_mean(rule, says):
    rule = dict(rule, match='@head')
    with pytest.raises(QuantConfigError, match=says) as error:
        parse_quant_cfg(dict(recipe='uniform', bits='w4a4', rules=[rule]))
    assert str(error.value).startswith('rules[0]')


@pytest.mark.parametrize('groups', [0, 'x'])
def test_what_is_wrong_of_an_argument_that_some_quantizers_have(groups):
    rules = [dict(match='neck.*', act=dict(num_groups=groups))]
    with pytest.raises(QuantConfigError, match='num_groups must be a whole'):
        parse_quant_cfg(dict(recipe='igq_vit', bits='w4a4', rules=rules))


@pytest.mark.parametrize('tensor', ['weight', 'act'])
def test_a_skip_may_say_float_twice(tensor):
    rule = {'match': '@head', 'skip': True, tensor: None}
    assert parse_quant_cfg(dict(recipe='uniform', rules=[rule])).rules


@pytest.mark.parametrize(
    ('act', 'says'),
    [
        (
            dict(type='InstanceGroupQuantizer', per_level=True),
            "'per_level'. Allowed: bits, clipped, granularity, num_groups.",
        ),
        (
            dict(type='InstanceGroupQuantizer', granularity='group'),
            "unknown granularity 'group'.*Allowed: channel, row",
        ),
        (dict(type='LLAQuantizer'), 'UniformQuantizer takes activations'),
    ],
)
def test_messages_speak_of_what_is_written(act, says):
    """And offer nothing that is refused in the next try."""
    rules = [dict(match='*', act=act)]
    with pytest.raises(QuantConfigError, match=says) as error:
        parse_quant_cfg(dict(recipe='uniform', bits='w4a4', rules=rules))
    assert str(error.value).startswith('rules[0].act: ')
    assert not re.search('axis|group_size', str(error.value))
