# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.ops import ModulatedDeformConv2dPack
from mmdet.models.backbones.resnet import Bottleneck
from torch import nn

from mmdet_ptq.errors import PTQError
from mmdet_ptq.surgery import FoldedNorm, fold_batch_norm


def fold_all(model, folds):
    for norm, layer in folds.items():
        fold_batch_norm(model, norm, layer)


def shaken(model):
    """Gives every batch norm statistics that are not the identity."""
    torch.manual_seed(0)
    for param in model.parameters():  # numbers that float32 cannot hold
        param.data += torch.rand_like(param) / 7
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                module.weight.data.uniform_(-2, 2)
                module.bias.data.uniform_(-1, 1)
    return model.eval()


CASES = {
    'conv': (lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], (2, 3, 8, 8)),
    'no_bias': (
        lambda: [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)],
        (2, 3, 8, 8),
    ),
    'grouped': (
        lambda: [nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8)],
        (2, 4, 8, 8),
    ),
    'not_affine': (
        lambda: [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)],
        (2, 3, 8, 8),
    ),
    'transposed': (
        lambda: [nn.ConvTranspose2d(3, 4, 3, 2), nn.BatchNorm2d(4)],
        (2, 3, 8, 8),
    ),
    'transposed_grouped': (
        lambda: [
            nn.ConvTranspose2d(4, 6, 2, 2, groups=2, bias=False),
            nn.BatchNorm2d(6),
        ],
        (2, 4, 8, 8),
    ),
    'linear': (lambda: [nn.Linear(5, 7), nn.BatchNorm1d(7)], (6, 5)),
    'sync_norm': (
        lambda: [nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)],
        (2, 3, 8, 8),
    ),
    'identity_between': (
        lambda: [
            nn.Conv2d(3, 4, 3),
            nn.Identity(),
            nn.Dropout(),
            nn.BatchNorm2d(4),
        ],
        (2, 3, 8, 8),
    ),
    'deformable': (
        lambda: [
            ModulatedDeformConv2dPack(3, 4, 3, bias=False),
            nn.BatchNorm2d(4),
        ],
        (2, 3, 8, 8),
    ),
}


@pytest.mark.parametrize(
    'dtype, atol', [(torch.float32, 1e-5), (torch.float64, 1e-10)]
)
@pytest.mark.parametrize('case', list(CASES))
def test_fold_is_exact(kit, case, dtype, atol):
    make, shape = CASES[case]
    net = shaken(nn.Sequential(*make()).to(dtype))
    image = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        want = net(image)
        graph = kit.look(net, lambda: net(image))
        norm = str(len(make()) - 1)
        assert graph.bn_folds == {norm: '0'}
        keep = net[0].weight
        fold_all(net, graph.bn_folds)
        got = net(image)
    assert type(net[int(norm)]) is nn.Identity
    assert net[0].weight is keep and net[0].bias.dtype == dtype
    assert got.dtype == dtype and want.std() > 0.1
    assert (got - want).abs().max() < atol


def test_fold_in_conv_module_and_bottleneck(kit):
    net = shaken(
        nn.Sequential(
            ConvModule(3, 8, 3, norm_cfg=dict(type='BN')),
            Bottleneck(
                8,
                2,
                downsample=nn.Sequential(
                    nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
                ),
            ),
        )
    )
    image = torch.randn(1, 3, 8, 8)
    want = net(image)
    graph = kit.look(net, lambda: net(image))
    assert graph.bn_folds == {
        '0.bn': '0.conv',
        '1.bn1': '1.conv1',
        '1.bn2': '1.conv2',
        '1.bn3': '1.conv3',
        '1.downsample.1': '1.downsample.0',
    }
    fresh = copy.deepcopy(net)
    fold_all(net, graph.bn_folds)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert (net(image) - want).abs().max() < 1e-5
    # a folded state dict goes into a model that never saw the norms
    for norm, layer in graph.bn_folds.items():
        FoldedNorm(norm, layer).rebuild(fresh)
    fresh.load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(fresh(image), net(image))
    again = kit.look(net, lambda: net(image))
    assert again.bn_folds == {} and list(again.layers) == list(graph.layers)


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def in_place(net, x):
    y = net.conv(x)
    y += 1
    return net.bn(y)


@pytest.mark.parametrize(
    'body, folds',
    [
        (lambda n, x: n.bn(n.conv(x)), {'bn': 'conv'}),
        # shared by two levels, conv and norm alike
        (lambda n, x: [n.bn(n.conv(y)) for y in (x, x * 2)], {'bn': 'conv'}),
        # RTMDet: a conv of all levels with a norm for each
        (lambda n, x: [b(n.conv(x)) for b in (n.bn, n.bn2)], {}),
        # NAS-FPN's head: convs of their own under one norm
        (lambda n, x: [n.bn(c(x)) for c in (n.conv, n.other)], {}),
        (lambda n, x: (lambda y: n.bn(y) + y)(n.conv(x)), {}),
        (lambda n, x: (lambda y: (n.bn(y), y))(n.conv(x)), {}),
        (lambda n, x: (n.bn(n.conv(x)), n.conv(x * 2)), {}),
        (lambda n, x: (n.bn(n.conv(x)), n.bn(x)), {}),
        (lambda n, x: n.bn(n.conv(x).relu()), {}),
        (lambda n, x: n.bn(x), {}),
        (lambda n, x: n.bn2(n.bn(n.conv(x))), {'bn': 'conv'}),
        (in_place, {}),
    ],
)
def test_what_folds(kit, body, folds):
    assert kit.look(Net(body)).bn_folds == folds


def test_norms_without_statistics_or_in_training_do_not_fold(kit):
    net = Net(lambda n, x: n.bn(n.conv(x))).eval()
    net.bn = nn.BatchNorm2d(3, track_running_stats=False)
    assert kit.look(net).bn_folds == {}
    net = Net(lambda n, x: n.bn.train()(n.conv(x)))
    assert kit.look(net).bn_folds == {}
    net.bn = nn.InstanceNorm2d(3, track_running_stats=True)
    assert kit.look(net).bn_folds == {}


def test_shared_norm_is_replaced_in_every_parent():
    norm = nn.BatchNorm2d(3)
    net = nn.ModuleDict(
        {
            'a': nn.Sequential(nn.Conv2d(3, 3, 1), norm),
            'b': nn.ModuleList([norm]),
        }
    ).eval()
    fold_all(net, {'a.1': 'a.0'})
    assert type(net['a'][1]) is type(net['b'][0]) is nn.Identity


@pytest.mark.parametrize(
    'folds, message',
    [
        ({'9': '0'}, "no module '9'"),
        ({'0': '0'}, 'not a batch norm'),
        ({'3': '2'}, '5 against 4 channels'),
    ],
)
def test_mistakes_change_nothing(folds, message):
    net = shaken(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(5),
        )
    )
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(PTQError, match=message):
        fold_all(net, folds)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], before[k]) for k in before)


class Rows(nn.Module):
    """A linear layer on (N, L, C) before a norm whose channels are L."""

    def __init__(self, channels=4):
        super().__init__()
        self.layer, self.bn = nn.Linear(3, channels), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.layer(x))


def test_norms_across_another_axis_stay(kit):
    """As wide as the layer by chance: nothing but the shape tells."""
    net = shaken(Rows())
    x = torch.randn(2, 4, 3)
    with torch.no_grad():
        assert kit.look(net, lambda: net(x)).bn_folds == {}
        assert kit.look(net, lambda: net(x[:, 0])).bn_folds == {'bn': 'layer'}
    # a map (C, H, W), whose norm takes H for channels
    net.layer = nn.Conv2d(2, 4, 1)
    with torch.no_grad():
        image = torch.randn(2, 4, 5)
        assert kit.look(net, lambda: net(image)).bn_folds == {}


class NormReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


def own_class(net):
    net.bn = NormReLU(3)


def replaced(net):
    plain = net.conv.forward
    net.conv.forward = lambda x: plain(x).relu()


def hook_of_layer(net):
    net.conv.register_forward_hook(lambda module, args, out: out.relu())


def hook_of_norm(net):
    net.bn.register_forward_hook(lambda module, args, out: out.relu())


def hook_before_norm(net):
    net.bn.register_forward_pre_hook(lambda module, args: None)


@pytest.mark.parametrize(
    'change, why',
    [
        (own_class, 'NormReLU has a forward of its own'),
        (replaced, 'the forward of one of them was replaced'),
        (hook_of_layer, 'a hook runs at or between them'),
        (hook_of_norm, 'a hook runs at or between them'),
        (hook_before_norm, 'a hook runs at or between them'),
    ],
)
def test_what_computes_more_than_a_norm_stays(kit, change, why):
    net = Net(lambda n, x: n.bn(n.conv(x)))
    change(net)
    graph = kit.look(net)
    assert graph.bn_folds == {}
    assert graph.kept_norms == {'bn': f'not folded into conv: {why}'}
