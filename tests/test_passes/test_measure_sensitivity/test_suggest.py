# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules that give the worst layers more bits."""

from dataclasses import replace

from plan_kit import graph, node, plan

from mmdet_ptq.passes.measure_sensitivity import (
    Part,
    Rank,
    suggestion,
    with_rules,
)
from mmdet_ptq.quant_cfg import parse_quant_cfg

EVERY = dict(match='*', weight={}, act={})
NODES = [node(n, [(1,)]) for n in ('a', 'b', 'c', 'd')]


def rank(name, score):
    return Rank(Part(name, (name,), (name,), (name,)), score, 0.0, 0.0, 0.0)


def suggest(rules, bits, ranks, count=2, nodes=NODES):
    found = graph(*nodes)
    return suggestion(ranks, found, plan(found, *rules, bits=bits), count)


def test_the_worst_get_the_widest_grid():
    ranks = [rank('c', 3.0), rank('a', 2.0), rank('b', 1.0)]
    found = suggest([EVERY], 'w4a6', ranks)
    eight = dict(bits=8)
    assert found.rules == [dict(match=['c', 'a'], weight=eight, act=eight)]
    assert found.words == 'keep these 2 layers at 8 bits'
    assert found.layers == ['c', 'a']


def test_what_is_wide_already_stays():
    found = suggest([EVERY], 'w4a8', [rank('c', 3.0)])
    assert found.rules == [dict(match=['c'], weight=dict(bits=8))]
    assert found.words == 'keep this layer at 8 bits'


def test_what_cannot_be_wider_goes_float():
    found = suggest([EVERY], 'w8a8', [rank('c', 3.0)])
    assert found.rules == [dict(match=['c'], weight=None, act=None)]
    assert found.words == 'keep this layer float'


def test_groups_of_channels_count_by_the_narrowest():
    groups = dict(type='ChannelGroups', bits=8, channels=1)
    for widths, wider in (([8, 3], True), ([8, 8], False)):
        rule = dict(match='c', weight=dict(groups, widths=widths))
        found = suggest([EVERY, rule], 'w4a8', [rank('c', 3.0)])
        words = 'at 8 bits' if wider else 'float'
        assert found.words == f'keep this layer {words}'


def test_widths_that_a_quantizer_has():
    """A subset of powers of two ends at 4 bits."""
    rules = [EVERY, dict(match='a', weight=dict(type='SubsetQuantizer'))]
    found = suggest(rules, 'w3a8', [rank('a', 3.0), rank('b', 2.0)])
    assert found.rules == [
        dict(match=['a'], weight=dict(bits=4)),
        dict(match=['b'], weight=dict(bits=8)),
    ]
    assert found.words == 'keep these 2 layers at 4 bits or 8 bits'


def test_layers_of_one_weight_go_together():
    tied = [replace(NODES[0], tied=('d',)), *NODES[1:]]
    found = suggest([EVERY], 'w4a4', [rank('a', 3.0)], nodes=tied)
    assert found.layers == ['a', 'd']


def test_nothing_is_lost():
    assert suggest([EVERY], 'w4a4', [rank('a', 0.0), rank('b', -1.0)]) is None


def test_added_behind_the_own_rules():
    found = suggest([EVERY], 'w4a4', [rank('a', 3.0)])
    own = dict(match='*', act=dict(bits=5))
    given = dict(recipe='uniform', bits='w4a4', rules=[own])
    joined = with_rules(given, found)
    assert joined['rules'] == [own, *found.rules]
    assert given['rules'] == [own]
    assert parse_quant_cfg(joined).user_rules == 2
    bare = with_rules(dict(recipe='uniform', bits='w4a4'), found)
    assert bare['rules'] == found.rules
