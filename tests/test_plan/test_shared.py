# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers that share a weight, in graphs made by hand."""

from dataclasses import replace

import pytest
from plan_kit import BOTH, graph, node, plan

WHY = 'its weight is also read by a function in the detector itself'


def tied(name, *others, value):
    return replace(node(name, [[value]]), tied=others)


@pytest.fixture
def pair():
    """Of one weight; the one that is called first is not first by name."""
    return graph(tied('b', 'a', value=1), tied('a', 'b', value=2))


def weights(found):
    return {
        name: layer.weight and layer.weight.bits
        for name, layer in found.layers.items()
    }


def test_one_note_for_one_weight(pair):
    found = plan(pair, BOTH)
    assert weights(found) == dict(a=4, b=4)
    note = 'b, a: have one weight, neither learned nor corrected'
    assert found.notes == [note]
    found = plan(pair, BOTH, dict(match='a', weight=dict(bits=7)))
    assert weights(found) == dict(a=4, b=4)
    assert found.notes == [
        f'{note}; rules say several things of it, that of b is taken'
    ]


@pytest.mark.parametrize('name, other', ['ab', 'ba'])
def test_one_that_is_left_float_leaves_both(pair, name, other):
    found = plan(pair, BOTH, dict(match=name, weight=None))
    assert weights(found) == dict(a=None, b=None)
    why = f'its weight is also that of {name}, left float'
    assert found.layers[other].why_float == why
    assert found.layers[other].acts == dict(input=None)
    assert found.notes == [f'{other}: stays float, {why}']
    # its own rule spoke of the weight alone
    assert found.layers[name].acts['input'].bits == 6


def test_what_a_function_reads_stays_float():
    held = replace(node('a', [[1]]), held=True, shares=WHY)
    found = plan(graph(held, node('b', [[2]])), BOTH)
    assert weights(found) == dict(a=None, b=4)
    assert found.layers['a'].acts == dict(input=None)
    assert found.layers['a'].why_float == WHY
    assert found.notes == [f'a: stays float, {WHY}']


def test_what_a_rule_skips_has_the_reason_of_the_rule():
    held = replace(node('a', [[1]]), held=True, shares=WHY)
    rule = dict(match='a', skip=True)
    found = plan(graph(held, node('b', [[2]])), BOTH, rule)
    assert found.notes == []
    assert found.layers['a'].why_float == 'rule a: skip'
