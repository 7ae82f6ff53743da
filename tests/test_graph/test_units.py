# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import pytest
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones.hourglass import HourglassModule
from mmdet.models.backbones.resnet import Bottleneck
from mmdet.models.backbones.swin import SwinBlock
from mmdet.models.necks import FPN, PAFPN
from torch import nn


def conv(*args):
    return nn.Conv2d(*args, padding=1)


class Block(nn.Module):
    def __init__(self, inner=None, down=False, inplace=False):
        super().__init__()
        self.a, self.b = conv(4, 4, 3), inner or conv(4, 4, 3)
        self.down = nn.Conv2d(4, 4, 1) if down else None
        self.inplace = inplace

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        skip = x if self.down is None else self.down(x)
        if self.inplace:
            y += skip
            return y
        return skip + F.dropout(y, training=self.training)


class Plain(nn.Module):
    """Adds two branches; not a residual block."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            nn.Sequential(conv(4, 4, 3), conv(4, 4, 3)) for _ in range(2)
        )

    def forward(self, x):
        return self.a(x) + self.b(x)


def units_of(graph):
    return {u.name: u.layers for u in graph.units}


@pytest.mark.parametrize(
    'block', [Block(), Block(inplace=True), Block(down=True)]
)
def test_residual_block(kit, block):
    net = nn.Sequential(conv(3, 4, 3), block, conv(4, 4, 3))
    want = {'0': ('0',), '1': ('1.a', '1.b'), '2': ('2',)}
    if block.down is not None:
        want['1'] += ('1.down',)
    got = units_of(kit.look(net))
    assert got == want and list(got) == ['0', '1', '2']


def test_nested_blocks_merge_into_the_outer(kit):
    net = nn.Sequential(conv(3, 4, 3), Block(inner=Block()))
    assert units_of(kit.look(net)) == {
        '0': ('0',),
        '1': ('1.a', '1.b.a', '1.b.b'),
    }


def test_blocks_side_by_side_stay_apart(kit):
    net = nn.Sequential(conv(3, 4, 3), nn.Sequential(Block(), Block()))
    assert list(units_of(kit.look(net))) == ['0', '1.0', '1.1']


def test_two_branches_are_no_block(kit):
    net = nn.Sequential(conv(3, 4, 3), Plain())
    assert all(len(v) == 1 for v in units_of(kit.look(net)).values())


def test_partition_with_a_block_called_twice(kit):
    block = Block()
    net = nn.Sequential(conv(3, 4, 3), block, block)
    graph = kit.look(net)
    assert units_of(graph) == {'0': ('0',), '1': ('1.a', '1.b')}


def test_skip_handed_in_from_outside(kit):
    """mmcv's FFN adds an identity that it gets beside its input."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.ffn = FFN(8, 16)

        def forward(self, x):
            return self.ffn(self.norm(x), identity=x)

    net = nn.Sequential(nn.Linear(8, 8), Layer(), FFN(8, 16))
    assert {
        n: len(v) for n, v in units_of(kit.look(net, shape=(1, 5, 8))).items()
    } == {'0': 1, '1': 2, '2': 2}


def test_position_added_again_is_no_residual(kit):

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.ffn = FFN(8, 16), FFN(8, 16)
            self.shift = nn.ModuleList([Shift()])

        def forward(self, x, pos):
            return self.ffn(self.shift[0](self.mix(x + pos), pos))

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Sequential(nn.Dropout())

        def forward(self, x, pos):
            return self.drop(x + pos)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.layer = nn.Linear(8, 8), Layer()

        def forward(self, x):
            x = self.fc(x)
            return self.layer(x, x * 2)

    units = units_of(kit.look(Net(), shape=(1, 5, 8)))
    assert list(units) == ['fc', 'layer.mix', 'layer.ffn']


def test_reference_points_are_no_skip(kit):

    class Sampler(nn.Module):
        def __init__(self):
            super().__init__()
            self.offsets, self.out = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, points):
            return self.out(self.offsets(x) + points)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Sampler(), Sampler()])

        def forward(self, x):
            points = x.sigmoid()
            for layer in self.layers:
                x = layer(x, points)
            return x

    net = nn.Sequential(nn.Linear(8, 8), Encoder())
    assert all(
        len(layers) == 1
        for layers in units_of(kit.look(net, shape=(1, 5, 8))).values()
    )


def test_parts_of_mmdetection(kit):

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.ModuleList(
                [
                    conv(3, 8, 3),
                    Bottleneck(8, 2),
                    HourglassModule(1, [8, 8], [1, 1]),
                ]
            )
            self.neck = nn.ModuleList([FPN([8, 8], 8, 2), PAFPN([8, 8], 8, 2)])
            self.bbox_head = SwinBlock(8, 2, 16, window_size=4)

        def forward(self, x):
            x = self.backbone[0](x)
            x = self.backbone[2](self.backbone[1](x))
            pair = (x, F.max_pool2d(x, 2))
            for neck in self.neck:
                pair = neck(pair)
            low = pair[0]
            return self.bbox_head(low.flatten(2).mT, low.shape[2:])

    sizes = {
        n: len(v)
        for n, v in units_of(kit.look(Detector())).items()
        if len(v) > 1
    }
    assert sizes == {
        'backbone.1': 3,
        'backbone.2.up1.0': 2,
        'backbone.2.low1.0': 3,
        'backbone.2.low2.0': 2,
        'backbone.2.low3.0': 2,
    }
