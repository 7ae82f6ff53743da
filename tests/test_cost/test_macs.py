# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""MACs of each call, against numbers worked out by hand."""

from math import prod

import pytest
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ptq.cost import count_macs, layer_macs
from mmdet_ptq.layers import MatMul, convert
from mmdet_ptq.surgery import SplitMultiheadAttention, decompose

#: layer, shapes of its inputs and output, products by hand
LAYERS = [
    # 4 * 5 places, 8 channels of 3 * 3 * 3 numbers
    (nn.Conv2d(3, 8, 3, 2, 1), [(1, 3, 8, 10)], (1, 8, 4, 5), 20 * 8 * 27),
    # a kernel that is not square, a batch, groups: 4 of 8 channels each
    (
        nn.Conv2d(8, 6, (1, 3), groups=2, bias=False),
        [(2, 8, 5, 7)],
        (2, 6, 5, 5),
        2 * 25 * 6 * 4 * 3,
    ),
    # depthwise
    (
        wrappers.Conv2d(6, 6, 3, padding=1, groups=6),
        [(1, 6, 4, 4)],
        (1, 6, 4, 4),
        16 * 6 * 9,
    ),
    # holes are not multiplied: nine taps that span five pixels
    (
        nn.Conv2d(2, 3, 3, dilation=2),
        [(1, 2, 9, 9)],
        (1, 3, 5, 5),
        25 * 3 * 18,
    ),
    (nn.Conv2d(2, 3, 1), [(0, 2, 9, 9)], (0, 3, 9, 9), 0),
    # each of 5 * 5 inputs of 4 channels meets 3 channels of 9 taps
    (
        nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2),
        [(1, 4, 5, 5)],
        (1, 6, 9, 9),
        25 * 4 * 3 * 9,
    ),
    (
        wrappers.ConvTranspose2d(4, 2, 2, 2),
        [(3, 4, 7, 7)],
        (3, 2, 14, 14),
        3 * 49 * 4 * 2 * 4,
    ),
    (nn.Linear(3, 4), [(2, 5, 3)], (2, 5, 4), 10 * 3 * 4),
    (wrappers.Linear(6, 2, bias=False), [(7, 6)], (7, 2), 7 * 6 * 2),
    (MatMul(), [(2, 3, 5, 4), (2, 3, 4, 7)], (2, 3, 5, 7), 6 * 5 * 4 * 7),
]
DEFORMABLE = [
    DeformConv2d(4, 6, 3, padding=1, groups=2),
    ModulatedDeformConv2d(4, 6, 3, padding=1, groups=2),
]


@pytest.mark.parametrize(
    ('layer', 'shapes', 'output', 'expected'),
    LAYERS,
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else '',
)
def test_by_hand(layer, shapes, output, expected):
    assert layer_macs(layer, shapes, output) == expected
    # the shapes are real, and torch's own counter agrees; it has no empty
    # tensors and counts a MAC as two
    inputs = [torch.rand(s) for s in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        assert layer(*inputs).shape == output
    if expected:
        assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize('layer', DEFORMABLE, ids=['v1', 'v2'])
def test_deformable_is_as_dense(layer):
    shapes = [(1, 4, 5, 5), (1, 18, 5, 5), (1, 9, 5, 5)]
    assert layer_macs(layer, shapes, (1, 6, 5, 5)) == 25 * 6 * 2 * 9


def test_other_kinds_are_not_guessed():
    other = nn.Bilinear(3, 3, 4)
    assert layer_macs(other, [(2, 3), (2, 3)], (2, 4)) is None


class Pyramid(nn.Module):
    """A head on three levels, a deformable pack and attention."""

    def __init__(self, pack):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.head = nn.Conv2d(4, 4, 3, padding=1)
        self.pack = pack(4, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x):
        x = self.down(x)
        levels = [x, x[..., ::2, ::2].contiguous(), self.pack(x)]
        tokens = x.flatten(2).transpose(1, 2)
        return [self.head(v) for v in levels], self.attention(
            tokens, tokens, tokens, need_weights=False
        )[0]


@pytest.mark.parametrize(
    ('pack', 'offsets'),
    [(DeformConv2dPack, 18), (ModulatedDeformConv2dPack, 27)],
)
@pytest.mark.parametrize('quantized', [False, True])
def test_each_call_counts(kit, pack, offsets, quantized):
    model = Pyramid(pack).eval()
    decompose(model)
    assert type(model.attention) is SplitMultiheadAttention
    if quantized:
        convert(model)
    graph = kit.look(model, lambda: model(torch.rand(1, 3, 8, 8)))
    tap = 4 * 4 * 9
    assert count_macs(model, graph) == {
        'down': [16 * 4 * 27],
        'head': [16 * tap, 4 * tap, 16 * tap],
        # the branch that makes the offsets is a layer of its own
        'pack.conv_offset': [16 * offsets * 36],
        'pack': [16 * tap],
        **{f'attention.{n}_proj': [16 * 16] for n in 'qkv'},
        # 16 tokens, two heads of two numbers
        'attention.matmul_qk': [2 * 16 * 16 * 2],
        'attention.matmul_pv': [2 * 16 * 16 * 2],
        'attention.out_proj': [16 * 16],
    }


#: 10^9 MACs of one forward at 800 x 1344, 1000 RoIs
PARTS = dict(
    faster=dict(stem=2.53, features=146.0, head=66.7, prediction=0.75),
    retina=dict(stem=2.53, features=103.2, head=105.7, prediction=39.0),
)
TOTAL = dict(faster=215.9, retina=250.5)


@pytest.mark.parametrize('name', PARTS)
def test_real_detectors(kit, detectors, name):
    model, graph = detectors[name]
    macs = count_macs(model, graph)
    found = dict.fromkeys(PARTS[name], 0)
    for layer, calls in macs.items():
        roles = graph.layers[layer].roles
        part = 'features' if roles & {'backbone', 'neck'} else 'head'
        for special in ('stem', 'prediction'):
            part = special if special in roles else part
        found[part] += sum(calls) / 1e9
    # the numbers below ten have two digits, the others one
    assert {
        k: round(v, 2 if v < 10 else 1) for k, v in found.items()
    } == PARTS[name]
    assert macs['backbone.conv1'] == [400 * 672 * 64 * 3 * 49]
    total = sum(map(sum, macs.values()))
    assert round(total / 1e9, 1) == TOTAL[name]
    # nothing but these layers multiplies, says torch
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        kit.forward(model)
    assert counter.get_total_flops() == 2 * total
    # a dense head runs on strides 8 to 128, RPN on 4 to 64
    first = (
        'bbox_head.cls_convs.0.conv'
        if name == 'retina'
        else ('rpn_head.rpn_conv')
    )
    start = 3 if name == 'retina' else 2
    sides = [
        (-(-800 // 2**k), -(-1344 // 2**k)) for k in range(start, start + 5)
    ]
    assert macs[first] == [prod(side) * 256 * 256 * 9 for side in sides]
