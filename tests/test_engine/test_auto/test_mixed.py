# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A width for each layer within a budget."""

from itertools import product

import pytest
from sensitivity_kit import Attentive, at_the_end

from mmdet_ptq.cost import cost_of
from mmdet_ptq.engine.auto.mixed import OPTIONS, Mix, facts_of
from mmdet_ptq.quant_cfg.rules import check_rule


def layer(weight, *acts, macs=10, size=100, has_weight=True):
    return dict(
        weight=weight,
        acts=list(acts),
        macs=macs,
        size=size,
        has_weight=has_weight,
    )


PARTS = dict(a=['a'], qk=['q', 'k'], stem=['stem'], p=['p'])
WIDE = dict(
    parts=PARTS,
    layers=dict(
        a=layer(8, 8, macs=100),
        q=layer(8, 8),
        k=layer(8, 8),
        stem=layer(8, 8, macs=1000),
        p=layer(None, 8, 8, has_weight=False, size=0),
    ),
)
NARROW = dict(
    parts=PARTS,
    layers=dict(
        a=layer(4, 4, macs=100),
        q=layer(4, 4),
        k=layer(4, 4),
        # fixed by a rule of the recipe
        stem=layer(8, 8, macs=1000),
        p=layer(None, 4, 4, has_weight=False, size=0),
    ),
)
LOST = {
    'alone/weight/a': 1.0,
    'alone/act/a': 5.0,
    'alone/weight/qk': 3.0,
    'alone/act/qk': 2.0,
    'alone/weight/stem': 9.0,
    'alone/act/stem': 9.0,
    'alone/act/p': 4.0,
}
MIX = Mix(WIDE, NARROW, dict.fromkeys(LOST, 0.0), LOST)
#: a 1600, q and k 160 each, stem 64000, p 160, and 500 beside the layers
NARROW_BOPS = 100 * 16 + 2 * 160 + 64000 + 160 + 500


def test_nothing_above_the_narrow_one():
    assert MIX.rules('bops', NARROW_BOPS, NARROW_BOPS) == []
    assert MIX.rules('bops', NARROW_BOPS - 1, NARROW_BOPS) == []


def test_what_loses_most_for_its_operations():
    """160 more: weights or inputs of qk, or all of p but not its 480."""
    found = MIX.rules('bops', NARROW_BOPS + 320, NARROW_BOPS)
    assert found == [dict(match=['q', 'k'], weight=dict(bits=8))]
    # p takes 640 - 160
    found = MIX.rules('bops', NARROW_BOPS + 480 + 320, NARROW_BOPS)
    assert found == [
        dict(match=['q', 'k'], weight=dict(bits=8)),
        dict(match=['p'], act=dict(bits=8)),
    ]


def test_all_of_it():
    found = MIX.rules('bops', 10**9, NARROW_BOPS)
    assert found == [
        dict(match=['a', 'q', 'k'], weight=dict(bits=8)),
        dict(match=['a', 'q', 'k', 'p'], act=dict(bits=8)),
    ]
    for i, rule in enumerate(found):
        check_rule(rule, f'rules[{i}]')


def test_bits_of_parameters():
    """Inputs cost nothing, so they are wide; weights as the budget says."""
    packed = 100 * (4 + 4 + 4 + 8) + 77
    found = MIX.rules('bits', packed + 400, packed)
    # either a (1.0) or half of qk, which goes together: none but a fits
    assert found == [
        dict(match=['a'], weight=dict(bits=8)),
        dict(match=['a', 'q', 'k', 'p'], act=dict(bits=8)),
    ]
    found = MIX.rules('bits', packed + 800, packed)
    assert dict(match=['q', 'k'], weight=dict(bits=8)) in found


def test_the_least_loss_of_all_choices():
    """Against every choice, for many budgets."""
    parts = list(PARTS)
    costs = [[MIX._cost(p, o, 'bops') for o in OPTIONS] for p in parts]
    losses = [[MIX._loss(p, o) for o in OPTIONS] for p in parts]
    for more in range(0, 6000, 371):
        budget = NARROW_BOPS + more
        found = MIX.rules('bops', budget, NARROW_BOPS)
        wide = {
            (name, key)
            for rule in found
            for key in rule.keys() - {'match'}
            for name in rule['match']
        }
        lost = sum(
            LOST[f'alone/{tensor}/{part}']
            for part, layers in PARTS.items()
            for tensor in ('weight', 'act')
            if part != 'stem' and f'alone/{tensor}/{part}' in LOST
            if (layers[0], tensor) not in wide
        )
        best = min(
            sum(losses[i][k] for i, k in enumerate(choice))
            for choice in product(range(4), repeat=4)
            if sum(costs[i][k] for i, k in enumerate(choice)) + 500 <= budget
        )
        assert lost == pytest.approx(best), more


def test_where_nothing_is_quantized():
    nothing = dict(parts={}, layers={})
    assert Mix(nothing, nothing, {}, {}).rules('bops', 10, 5) == []


def test_a_float_input_stays_float():
    """A rule on the inputs of a layer would quantize it."""
    wide = dict(parts=dict(p=['p']), layers=dict(p=layer(8, 8, None)))
    narrow = dict(parts=dict(p=['p']), layers=dict(p=layer(4, 4, None)))
    lost = {'alone/weight/p': 1.0, 'alone/act/p': 5.0}
    mix = Mix(wide, narrow, {}, lost)
    assert mix.rules('bops', 10**6, 3000) == [
        dict(match=['p'], weight=dict(bits=8))
    ]


def test_facts_of_a_detector():
    """Their operations are those of the result file."""

    def look(session):
        cost = cost_of(session.model, session.graph, session.plan)
        return facts_of(session), cost['bops']['quantized']

    rules = [
        dict(match='*', weight={}, act={}),
        dict(match='backbone', weight=dict(bits=8), act=None),
    ]
    facts, bops = at_the_end(look, net=Attentive, rules=rules, bits='w4a6')
    layers = facts['layers']
    assert layers['backbone']['weight'] == 8
    assert layers['backbone']['acts'] == [None]
    assert layers['out']['acts'] == [6] and layers['out']['size'] == 32
    mix = Mix(facts, facts, {}, {})
    parts = facts['parts']
    total = sum(mix._cost(part, OPTIONS[0], 'bops') for part in parts)
    assert total == bops
    assert [n for n in parts if len(parts[n]) > 1] == [
        'attn.{q_proj,k_proj,v_proj}'
    ]
