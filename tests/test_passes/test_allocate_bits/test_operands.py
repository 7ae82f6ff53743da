# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which tensors are allocated, and in how many units."""

import pytest
from allocate_kit import LAYERS, planned
from reconstruct_model import RULES
from two_levels import RULES as TWO
from two_levels import Tiny
from two_levels import batches as two_batches

from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.passes.allocate_bits.operands import Wanted, largest_divisor
from mmdet_ptq.plan import build_quantizer

BASE = dict(weight=4, input=4)
INSTANCES = 'InstanceGroupQuantizer'


def found(session, scope=('*',), floor=3, channels=None):
    floors = dict(weight=floor, input=floor)
    return Wanted(scope, BASE, floors, 8, channels).find(session)


def test_weights_and_inputs_with_their_sizes():
    every = found(planned())
    assert [o.holders for o in every] == [
        *(((name, 'weight'),) for name in LAYERS),
        *(((name, 'input'),) for name in LAYERS),
    ]
    sizes = {o.name: o.sizes for o in every}
    assert sizes['backbone.0.weight'] == (8 * 27,)
    assert sizes['backbone.0.input'] == (3 * 12 * 12,)
    assert sizes['neck.1.input'] == (8 * 6 * 6,)
    # called on two levels
    assert sizes['tower.input'] == (8 * 12 * 12 + 8 * 6 * 6,)
    assert all(o.widths == (3, 4, 5, 6, 7, 8) for o in every)


def test_a_shared_input_is_one():
    session = planned(rules=TWO, net=Tiny, data=two_batches())
    shared = [o for o in found(session) if len(o.holders) > 1]
    assert [sorted(o.holders) for o in shared] == [
        [('bbox_head.0', 'input'), ('side', 'input')]
    ]
    # the side branch reads the finer of the two levels: counted once
    assert shared[0].sizes == (8 * 8 * 8 + 8 * 4 * 4,)
    # not all readers are in scope
    some = found(session, scope=('bbox_head.*',))
    assert [o.name for o in some if o.kind == 'input'] == ['bbox_head.2.input']


def test_what_rules_pin_is_left_out():
    rules = [
        *RULES,
        dict(match='@stem', weight=dict(bits=8), act=dict(bits=8)),
        dict(match='tower', act=None),
    ]
    names = {o.name for o in found(planned(rules=rules))}
    assert 'backbone.0.weight' not in names
    assert 'backbone.0.input' not in names
    assert 'tower.weight' in names and 'tower.input' not in names
    names = {o.holders[0][0] for o in found(planned(), scope=('@backbone',))}
    assert names == set(LAYERS[:5])


def test_groups_of_channels():
    every = {o.name: o for o in found(planned(), channels=4)}
    weight = every['tower.weight']
    assert weight.channels == 4 and weight.sizes == (288, 288)
    act = every['tower.input']
    assert act.channels == 4 and act.sizes == (720, 720)
    # three channels of the image
    assert every['backbone.0.input'].channels is None
    # the last unit of a weight is smaller, those of an input are equal
    every = {o.name: o for o in found(planned(), channels=5)}
    assert every['tower.weight'].sizes == (360, 216)
    assert every['tower.input'].channels == 4


def test_specs_of_widths():
    every = {o.name: o for o in found(planned(), channels=4)}
    weight = every['tower.weight']
    spec = weight.spec_of([3, 6])
    assert spec.type == 'ChannelGroups' and spec.bits == 6
    assert spec.args == dict(
        widths=[3, 6], channels=4, of=dict(type='UniformQuantizer')
    )
    # which has a range for each channel anyway
    same = weight.spec_of([5, 5])
    assert same.type == weight.spec.type and same.bits == 5
    assert same.args == weight.spec.args
    # ranges of groups are not that of a tensor
    assert every['tower.input'].spec_of([5, 5]).type == 'ChannelGroups'
    assert every['backbone.0.input'].spec_of([7]).bits == 7


def test_storage():
    session = planned(channels=5)
    every = {o.name: o for o in found(session, channels=5)}
    # 5 and 3 channels of 72 weights: codes, a scale and a zero point each
    assert every['tower.weight'].storage(session.layers, 4) == [
        5 * (72 * 4 + 36),
        3 * (72 * 4 + 36),
    ]
    # in groups each channel has a scale, whatever the rule says
    whole = dict(match='tower', weight=dict(granularity='tensor'))
    session = planned(rules=[*RULES, whole])
    one = next(
        o for o in found(session, channels=4) if o.name == 'tower.weight'
    )
    mixed = build_quantizer(
        one.spec_of([4, 3]), session.layers['tower'], 'weight', 'tower'
    )
    assert mixed.storage_bits((8, 8, 3, 3)) == (
        one.storage(session.layers, 4)[0] + one.storage(session.layers, 3)[1]
    )
    tables = dict(type='CodebookQuantizer', granularity='channel')
    session = planned(rules=[*RULES, dict(match='tower', weight=tables)])
    one = next(o for o in found(session) if o.name == 'tower.weight')
    # 16 values of 32 bits each, 256 at 8 bits
    assert one.storage(session.layers, 4) == [8 * (72 * 4 + 16 * 32)]
    assert one.storage(session.layers, 8) == [8 * (72 * 8 + 256 * 32)]


def test_largest_divisor():
    assert largest_divisor(192, 128) == 96
    assert largest_divisor(768, 128) == 128
    assert largest_divisor(7, 4) == 1


def test_mistakes_are_named():
    session = planned()
    with pytest.raises(QuantConfigError, match='leave nothing to allocate'):
        found(session, scope=('@mask',))
    subset = dict(type='SubsetQuantizer', granularity='channel')
    rules = [*RULES, dict(match='tower', weight=subset)]
    session = planned(rules=rules)
    names = {o.name: o.widths for o in found(session)}
    assert names['tower.weight'] == (3, 4)
    with pytest.raises(QuantConfigError, match=r'tower\.weight.* has 2, 3, 4'):
        found(session, floor=4)
    rules = [*RULES, dict(match='tower', act=dict(type=INSTANCES))]
    session = planned(rules=rules)
    assert found(session)[-1].channels is None
    match = r'tower\.input cannot have groups of 4 .* be a part of channel'
    with pytest.raises(QuantConfigError, match=match):
        found(session, channels=4)
