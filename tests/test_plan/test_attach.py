# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers of a plan written by hand, on twins."""

import pytest
from plan_kit import graph, node
from reconstruct_model import INIT, RULES, Net, batches
from torch import nn

from mmdet_ptq import quantize_detector
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import MatMul, convert, quant_layers
from mmdet_ptq.plan import attach, check_plan
from mmdet_ptq.plan.attach import build_quantizer
from mmdet_ptq.quant_cfg import parse_quant_cfg
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec, Value

U = 'UniformQuantizer'


@pytest.fixture
def model():
    found = nn.Sequential(
        nn.Conv2d(8, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 4, 2),
        nn.Linear(4, 2),
    )
    convert(found)
    return found


def plan_of(weights, acts, groups):
    names = map(str, range(3))
    return QuantPlan(
        {
            n: LayerPlan(n, weight, dict(input=act))
            for n, weight, act in zip(names, weights, acts, strict=True)
        },
        groups,
    )


def test_what_layers_are_given(model):
    weight, act = QuantSpec(U, 3), QuantSpec(U, 5)
    plan = plan_of(
        [weight, weight, None],
        [act, act, None],
        [[('0', 'input'), ('1', 'input')]],
    )
    attach(model, plan, {'0': 1, '1': 4})
    first, second, third = model
    assert first.weight_quantizer.bits == second.weight_quantizer.bits == 3
    assert first.weight_quantizer is not second.weight_quantizer
    # output channels of a transposed convolution come second
    assert first.weight_quantizer.granularity.axis == 0
    assert second.weight_quantizer.granularity.axis == 1
    # one tensor, one quantizer
    shared = first.act_quantizers['input']
    assert shared is second.act_quantizers['input'] and shared.bits == 5
    assert third.weight_quantizer is None and not third.act_quantizers
    assert (first.levels, second.levels, third.levels) == (1, 4, 1)
    # what was there before goes
    attach(model, plan_of([None] * 3, [None] * 3, []), {})
    assert first.weight_quantizer is None and not first.act_quantizers
    assert second.levels == 1


def test_groups_of_a_convolution(model):
    own = QuantSpec(U, 4, dict(granularity='group', group_size='conv'))
    attach(
        model, plan_of([None] * 3, [own, None, None], [[('0', 'input')]]), {}
    )
    granularity = model[0].act_quantizers['input'].granularity
    assert granularity.group_size == 8 // 2
    plan = plan_of([None] * 3, [None, None, own], [[('2', 'input')]])
    with pytest.raises(QuantConfigError, match=r'^2: .*give group_size'):
        attach(model, plan, {})


def test_shares_of_the_input_channels(model):
    share = QuantSpec(U, 4, dict(granularity='group', group_size='1/4'))
    groups = [[('0', 'input')], [('2', 'input')]]
    attach(model, plan_of([None] * 3, [share, None, share], groups), {})
    sizes = [
        model[i].act_quantizers['input'].granularity.group_size for i in (0, 2)
    ]
    assert sizes == [8 // 4, 4 // 4]
    third = QuantSpec(U, 4, dict(granularity='group', group_size='1/3'))
    plan = plan_of([None] * 3, [third, None, None], groups[:1])
    with pytest.raises(QuantConfigError, match=r"0: .*'1/3' does not .* 8 in"):
        attach(model, plan, {})
    product = MatMul()
    convert(product)
    with pytest.raises(QuantConfigError, match='and it is neither'):
        build_quantizer(share, product, 'a', 'x')


def test_rows_lie_along_what_is_summed_up():
    spec = QuantSpec('InstanceGroupQuantizer', 4, dict(granularity='row'))
    for layer, port, axis in (
        (nn.Linear(2, 2), 'input', -1),
        (MatMul(), 'a', -1),
        (MatMul(), 'b', -2),
    ):
        convert(layer)
        q = build_quantizer(spec, layer, port, 'x')
        assert q.granularity.axis == axis
    conv = nn.Conv2d(2, 2, 3)
    convert(conv)
    with pytest.raises(QuantConfigError, match=r"x: .*'row' .*'@linear'"):
        build_quantizer(spec, conv, 'input', 'x')


def test_mistakes_name_the_tensor(model):
    plan = plan_of([QuantSpec('Unifrm', 4), None, None], [None] * 3, [])
    with pytest.raises(QuantConfigError, match=r"0\.weight: .*'Unifrm'"):
        attach(model, plan, {})
    plan = plan_of(
        [None] * 3,
        [QuantSpec(U, 4, dict(x=1)), None, None],
        [[('0', 'input')]],
    )
    with pytest.raises(QuantConfigError, match=r"0\.input: .*'x'"):
        attach(model, plan, {})


@pytest.mark.parametrize(
    'weight, act, says',
    [
        (
            dict(granularity='group', group_size=5),
            None,
            r'0\.weight: group_size 5 does not divide the 36 weights a '
            r'channel of shape \(6, 4, 3, 3\), as 4 does; give',
        ),
        (
            dict(type='LLAQuantizer', granularity='group', group_size=4),
            None,
            r"0\.weight: unknown argument of LLAQuantizer 'group_size'",
        ),
        (
            None,
            dict(granularity='group', group_size=3),
            r'0\.input: group_size 3 does not divide the 8 channels of '
            r'shape \(8, 9, 8\), as 2 does',
        ),
        (
            None,
            dict(granularity='channel', axis=4),
            r'0\.input: a tensor of shape \(8, 9, 8\) has no axis 4',
        ),
        (
            None,
            dict(type='InstanceGroupQuantizer', num_groups=9),
            r'0\.input: num_groups 9 is more than the 8 channels of shape',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_found_before_there_are_twins(
    weight, act, says
):
    model = nn.Sequential(nn.Conv2d(8, 6, 3, groups=2))
    looked = graph(node('0', [[1]], groups=2))
    looked.values[1] = Value(1, -1, (8, 9, 8))

    def spec(args):
        if args is None:
            return None
        args = dict(args)
        return QuantSpec(args.pop('type', U), 4, args)

    found = LayerPlan('0', spec(weight), dict(input=spec(act)))
    with pytest.raises(QuantConfigError, match=says):
        check_plan(model, QuantPlan({'0': found}, []), looked)
    assert type(model[0]) is nn.Conv2d


def test_a_run_that_is_refused_leaves_no_twins():
    model = Net().eval()
    rules = [*RULES, dict(match='tower', weight=dict(group_size=5))]
    rules[-1]['weight']['granularity'] = 'group'
    with pytest.raises(QuantConfigError, match=r'tower\.weight: group_size 5'):
        quantize_detector(
            model, batches(1), dict(bits='w8a8', rules=rules, passes=INIT)
        )
    assert quant_layers(model) == {}


@pytest.mark.parametrize('size', [0, True, '4', 2.0])
def test_what_is_no_group_size(size):
    rule = dict(
        match='*', weight=dict(granularity='group', group_size=size), act={}
    )
    with pytest.raises(QuantConfigError, match=r'rules\[0\].*group_size'):
        parse_quant_cfg(dict(bits='w4a4', rules=[rule], passes=INIT))
