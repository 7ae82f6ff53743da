# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import ModulatedDeformConv2dPack, RoIAlign
from torch import nn

from mmdet_ptq.graph.roles import component_roles


@pytest.mark.parametrize(
    'name, roles',
    [
        ('backbone.conv1', {'backbone'}),
        ('neck.0.conv', {'neck'}),
        ('rpn_head.rpn_cls', {'rpn', 'head'}),
        ('roi_head.bbox_head.fc_cls', {'head'}),
        ('roi_head.mask_head.1.conv_logits', {'head', 'mask'}),
        ('detector.backbone.conv1', {'backbone'}),
        ('decoder.layers.0.backbone', {'head'}),
    ],
)
def test_component_roles(name, roles):
    assert component_roles(name) == roles


class Detector(nn.Module):
    """A pyramid of two levels and a head; what it returns is a choice."""

    def __init__(self, tail):
        super().__init__()
        self.pre_bn = nn.BatchNorm2d(3)
        self.backbone = nn.Conv2d(3, 8, 3, 2, 1)
        self.neck = nn.Conv2d(8, 8, 3, 2, 1)
        self.tower = nn.Conv2d(8, 8, 3, 1, 1)
        self.cls = nn.Conv2d(8, 2, 1)
        self.reg = nn.Conv2d(8, 4, 1)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)
        self.roi = RoIAlign(1, 1.0, 0)
        self.tail = tail

    def forward(self, x):
        c = F.relu(self.backbone(self.pre_bn(x * 2)[:, [2, 1, 0]]))
        feats = [F.relu(self.tower(f)) for f in (c, self.neck(c))]
        return self.tail(self, feats)


def test_stem_goes_through_norms_and_shapes(kit):
    graph = kit.look(Detector(lambda net, f: None))
    assert kit.with_role(graph, 'stem') == ['backbone']


def test_prediction_through_pointwise_and_shape_ops(kit):

    def tail(net, feats):
        boxes = [
            net.reg(f).permute(0, 2, 3, 1).exp().flatten(1, 2) for f in feats
        ]
        return {
            'c': [net.cls(f).sigmoid() for f in feats],
            'b': torch.cat(boxes, 1),
        }

    graph = kit.look(Detector(tail))
    assert kit.with_role(graph, 'prediction') == ['cls', 'reg'] or (
        kit.with_role(graph, 'prediction') == ['reg', 'cls']
    )


def test_features_beside_predictions_are_none(kit):
    graph = kit.look(Detector(lambda net, f: (f, [net.cls(x) for x in f])))
    assert kit.with_role(graph, 'prediction') == ['cls']


def test_norm_stops_the_walk(kit):
    graph = kit.look(
        Detector(lambda net, f: net.norm(f[0].flatten(2).transpose(1, 2)))
    )
    assert kit.with_role(graph, 'prediction') == []


def test_top_scores_pick_features(kit):
    """Indices come from the scores; what they gather are features."""

    def tail(net, feats):
        scores = net.cls(feats[0]).flatten(2).max(1).values
        picked = scores.topk(3).indices[..., None].expand(-1, -1, 8)
        memory = feats[0].flatten(2).transpose(1, 2)
        return net.fc(torch.gather(memory, 1, picked))

    graph = kit.look(Detector(tail))
    assert kit.with_role(graph, 'prediction') == ['cls', 'fc']


def test_boxes_of_roi_align_but_not_its_features(kit):

    def tail(net, feats):
        boxes = net.reg(feats[0]).abs().flatten(2)[0].T[:5].detach()
        rois = torch.cat([boxes.new_zeros(5, 1), boxes], 1)
        return net.fc(net.roi(feats[0], rois).flatten(1))

    graph = kit.look(Detector(tail))
    assert kit.with_role(graph, 'prediction') == ['reg', 'fc']


class Attention(nn.Module):
    def __init__(self, matmul):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.bias = nn.Parameter(torch.rand(5, 5))
        self.qk, self.pv = matmul(), matmul()
        self.drop = nn.Dropout()
        self.proj = nn.Linear(8, 8)
        self.up = nn.Linear(8, 16)
        self.act = nn.GELU()
        self.down = nn.Linear(16, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        a = self.qk(q * 0.3, k.mT) + self.bias
        a = self.drop(F.softmax(a, -1).to(x.dtype))
        x = x + self.proj(self.pv(a, v))
        x = x + self.down(self.act(self.up(x)).reshape(x.shape[0], -1, 16))
        return self.out(x)


class Product(nn.Module):
    """Not a leaf layer: the product is seen as a function."""

    def forward(self, a, b):
        return torch.matmul(a, b)

    def __init__(self):
        super().__init__()
        self.child = nn.Identity()


@pytest.mark.parametrize('modules', [True, False])
def test_attention_softmax_gelu(kit, modules):
    net = Attention(kit.MatMul if modules else Product)
    graph = kit.look(net, shape=(2, 5, 8))
    products = ['qk', 'pv'] if modules else []
    assert kit.with_role(graph, 'attention') == ['qkv', *products, 'proj']
    arriving = {
        (n, p): r
        for n, layer in graph.layers.items()
        for p, r in layer.port_roles.items()
        if r
    }
    want = {('down', 'input'): {'gelu'}}
    if modules:
        want['qk', 'a'] = {'query'}
        want['qk', 'b'] = {'key'}
        want['pv', 'a'] = {'softmax'}
    assert arriving == want
    assert kit.with_role(graph, 'prediction') == ['out']


def test_conv_offset_is_a_layer_inside_a_layer(kit):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    )
    graph = kit.look(net)
    assert list(graph.layers) == ['0', '1.conv_offset', '1']
    assert kit.with_role(graph, 'offset') == ['1.conv_offset']
    (deform,) = graph.layers['1'].calls
    assert deform.inputs == (graph.ops[0].outputs[0], graph.ops[1].outputs[0])
    assert graph.shared_ports == [
        [('0', 'input')],
        [('1.conv_offset', 'input'), ('1', 'input')],
    ]


def test_grid_of_grid_sample(kit):

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.value = nn.Conv2d(3, 4, 1)
            self.offsets = nn.Conv2d(3, 2, 1)
            self.last = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            grid = self.offsets(x).permute(0, 2, 3, 1).tanh()
            return self.last(
                F.grid_sample(self.value(x), grid, align_corners=False)
            )

    graph = kit.look(Net())
    assert kit.with_role(graph, 'offset') == ['offsets']
    assert kit.with_role(graph, 'stem') == ['value', 'offsets'] or (
        kit.with_role(graph, 'stem') == ['offsets', 'value']
    )
    assert kit.with_role(graph, 'prediction') == ['last']


def test_locations_of_fused_deformable_attention(kit):
    """What mmcv calls on a GPU; on a CPU it samples with grid_sample."""

    class MultiScaleDeformableAttnFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, shapes, starts, locations, weights, step):
            return value.new_zeros(value.shape) + locations.sum()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.value, self.offsets = nn.Linear(8, 8), nn.Linear(8, 4)
            self.weights, self.out = nn.Linear(8, 4), nn.Linear(8, 8)

        def forward(self, x):
            sizes = torch.tensor([[1, 5]])
            return self.out(
                MultiScaleDeformableAttnFunction.apply(
                    self.value(x),
                    sizes,
                    sizes[0, :1],
                    self.offsets(x) + 0.5,
                    self.weights(x).softmax(-1),
                    64,
                )
            )

    graph = kit.look(Net(), shape=(2, 5, 8))
    assert kit.with_role(graph, 'offset') == ['offsets']
    assert kit.with_role(graph, 'prediction') == ['out']
