# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""BOPs and what the result file says of them."""

import json
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdet_ptq.cost import (
    cost_of,
    count_macs,
    reg_ptq_flops,
)
from mmdet_ptq.engine.survey import survey_detector
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.structures import LayerPlan, QuantPlan, QuantSpec


def spec(bits):
    return QuantSpec('UniformQuantizer', bits) if bits < 32 else None


def plan_of(graph, bits):
    """A plan from the operand bits of each layer."""
    layers = {}
    for name, (first, second) in bits.items():
        ports = graph.layers[name].ports
        if len(ports) == 1:
            found = spec(first), {ports[0]: spec(second)}
        else:
            found = None, {ports[0]: spec(first), ports[1]: spec(second)}
        layers[name] = LayerPlan(name, *found)
    return QuantPlan(layers, [])


def test_mixed_plan_against_a_double_loop(detectors):
    model, graph = detectors['retina']
    dice = random.Random(0)
    bits = {
        n: (dice.choice([2, 3, 4, 8, 32]), dice.choice([4, 6, 8, 32]))
        for n in graph.layers
    }
    expected, total = 0, 0
    for name in graph.layers:
        layer = model.get_submodule(name)
        for op in graph.layers[name].calls:
            _, out, height, width = graph.values[op.outputs[0]].shape
            taps = layer.kernel_size[0] * layer.kernel_size[1]
            macs = height * width * out * layer.in_channels * taps
            expected += macs * bits[name][0] * bits[name][1]
            total += macs
    found = cost_of(model, graph, plan_of(graph, bits))
    assert found['macs'] == total
    assert found['bops'] == dict(float=total * 32 * 32, quantized=expected)
    assert found['flops_eq'] == expected / 1024
    assert found['input'] == [1, 3, 800, 1344] and found['mode'] == 'tensor'
    assert sum(found['parts'].values()) == total
    assert list(found['parts']) == [
        'stem',
        'backbone',
        'neck',
        'head',
        'prediction',
    ]
    w, a = bits['bbox_head.retina_cls']
    # 22400 places on five levels, 9 anchors of 80 classes
    macs, numel = 22400 * 9 * 80 * 256 * 9, 9 * 80 * 256 * 9
    assert found['layers']['bbox_head.retina_cls'] == dict(
        part='prediction',
        macs=macs,
        bops=macs * w * a,
        calls=5,
        bits=[w, a],
        elements=dict(weight=numel, input=22400 * 256),
        params=numel + 9 * 80,
        # the plan is not carried out here
        bytes=dict.fromkeys(('float', 'quantized'), 4.0 * (numel + 9 * 80)),
    )
    assert found['not_counted'] == {}


#: 10^9 FLOPs by the rule of /128 at 2/4, 4/4 and 4/8 bits
RULE = {
    ('faster', False): (77.8, 87.0, 105.2),
    ('faster', True): (15.3, 28.6, 55.2),
    ('retina', False): (152.4, 158.9, 171.8),
    ('retina', True): (53.3, 66.4, 92.5),
}


@pytest.mark.parametrize(('name', 'heads'), RULE)
def test_rule_of_the_paper(detectors, name, heads):
    model, graph = detectors[name]
    macs = count_macs(model, graph)
    for (w, a), expected in zip(
        [(2, 4), (4, 4), (4, 8)], RULE[name, heads], strict=True
    ):
        bits = {}
        for layer, node in graph.layers.items():
            bits[layer] = (w, a)
            if 'stem' in node.roles:
                bits[layer] = (8, 8)
            elif 'prediction' in node.roles or (
                'head' in node.roles and not heads
            ):
                bits[layer] = (32, 32)
        assert round(reg_ptq_flops(macs, bits) / 1e9, 1) == expected


class Odd(nn.Module):
    """Multiplies in ways that nobody can count."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.strange = Strange(4, 4, 1)
        self.product = MatMul()

    def forward(self, x):
        x = self.strange(self.conv(x))
        x = F.conv2d(x, torch.rand(4, 4, 1, 1))
        scores = self.product(x, x.transpose(2, 3))
        return torch.einsum('bchw,bcwk->bchk', scores, scores).softmax(-1)


class Strange(nn.Conv2d):
    """A subclass, which has no twin."""


def test_what_is_not_counted_is_named(kit):
    model, image = Odd().eval(), torch.rand(1, 3, 6, 6)
    # a constant comes before the image, which goes past `model.__call__`
    graph = kit.look(model, lambda: (torch.ones(2) * 2, model.forward(image)))
    plan = plan_of(graph, dict(conv=(8, 4), product=(8, 5)))
    plan.uncovered['strange'] = 'no twin'
    found = cost_of(model, graph, plan)
    assert found['input'] == [1, 3, 6, 6]
    # 36 places of 3 * 4; four products of 6 * 6 * 6
    assert found['macs'] == 432 + 864
    assert found['bops']['quantized'] == 432 * 32 + 864 * 40
    assert found['not_counted'] == dict(Strange=1, conv2d=1, einsum=1)


def test_layer_of_an_unknown_kind(kit):
    """A twin that a user registers need not be a convolution."""
    model = Odd().eval()
    convert(model)
    graph = kit.look(model, lambda: model(torch.rand(1, 3, 6, 6)))
    model.conv = nn.Bilinear(1, 1, 1)
    plan = plan_of(graph, dict(conv=(8, 4), product=(8, 5)))
    found = cost_of(model, graph, plan)
    assert list(found['layers']) == ['product'] and found['macs'] == 864
    assert found['not_counted'] == dict(QuantConv2d=1, conv2d=1, einsum=1)


class OnlyPredicts(nn.Module):
    """A detector without a working raw mode."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def data_preprocessor(self, batch, training):
        return batch

    def forward(self, inputs, mode):
        if mode == 'tensor':
            self.conv(inputs)
            raise NotImplementedError
        return self.conv(inputs)


def test_mode_is_told():
    """And the call of the failed attempt does not count."""
    model = OnlyPredicts()
    graph = survey_detector(model, dict(inputs=torch.rand(1, 3, 5, 5)))
    found = cost_of(model, graph, plan_of(graph, dict(conv=(8, 8))))
    assert found['mode'] == 'predict' and found['macs'] == 25 * 12


def test_result_file_and_table(ptq):
    run = ptq('--recipe', 'minmax', '--bits', 'w4a8', model='mask_rcnn')
    assert run.code == 0, run.err
    cost = run.result['cost']
    assert cost['input'] == [1, 3, 64, 64] and cost['mode'] == 'tensor'
    layers = cost['layers']
    # four levels of 16 x 16 to 2 x 2; 60 proposals; the float layers too
    rpn = layers['rpn_head.rpn_conv']
    macs, numel = 340 * 16 * 16 * 9, 16 * 16 * 9
    assert rpn == dict(
        part='rpn',
        macs=macs,
        bops=macs * 4 * 8,
        calls=4,
        bits=[4, 8],
        elements=dict(weight=numel, input=340 * 16),
        params=numel + 16,
        # a scale and a zero point of each row, and of the input
        bytes=dict(
            float=4.0 * (numel + 16),
            quantized=(numel * 4 + 16 * 32 + 16 * (32 + 4) + 32 + 8) / 8,
        ),
    )
    fc = layers['roi_head.bbox_head.shared_fcs.0']
    assert fc['calls'] == 1 and fc['macs'] % (16 * 49 * 32) == 0
    assert 0 < fc['macs'] <= 60 * 16 * 49 * 32
    mask = layers['roi_head.mask_head.upsample']
    rois = fc['macs'] // (16 * 49 * 32)
    assert mask['macs'] == rois * 49 * 16 * 16 * 4
    assert cost['macs'] == sum(v['macs'] for v in layers.values())
    for side, size in run.result['storage_mb'].items():
        assert round(cost['bytes'][side] / 1e6, 4) == size
    quantized = cost['bops']['quantized']
    assert quantized == sum(
        v['macs'] * v['bits'][0] * v['bits'][1] for v in layers.values()
    )
    assert set(cost['parts']) == {
        'stem',
        'backbone',
        'neck',
        'rpn',
        'head',
        'mask',
        'prediction',
    }
    assert json.loads(json.dumps(cost)) == cost
    lines = {
        line.split('│')[1].strip(): [c.strip() for c in line.split('│')[2:-1]]
        for line in run.out.splitlines()
        if line.count('│') == 5
    }
    giga = f'{cost["macs"] / 1e9:.4g}'
    assert lines['MACs (G) at 64x64'] == [giga, giga, '']
    before = cost['bops']['float']
    assert before == cost['macs'] * 1024
    assert lines['BOPs (T)'] == [
        f'{before / 1e12:.4g}',
        f'{quantized / 1e12:.4g}',
        f'÷ {before / quantized:.2f}',
    ]
    assert lines['parameters (MB)'][0] == (
        f'{run.result["storage_mb"]["float"]:.2f}'
    )
