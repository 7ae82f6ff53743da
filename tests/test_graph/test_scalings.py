# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which channels can be scaled; that it is exact is tried with factors."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdet_ptq.passes.equalize.factors import spread
from mmdet_ptq.surgery import fold_batch_norm, scale_inputs, scale_outputs


class ReLU(nn.Module):
    """Called like that of PyTorch."""

    def forward(self, x):
        return x.sigmoid()


class Net(nn.Module):
    def __init__(self, body, matmul):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 1)
        self.other = nn.Conv2d(3, 8, 1, bias=False)
        self.next = nn.Conv2d(8, 4, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
        self.wide = nn.Conv2d(16, 4, 1)
        self.fc, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 4)
        self.flat = nn.Linear(8 * 16, 4)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 4)
        self.bn, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.ln, self.gn = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.prelu, self.drop = nn.PReLU(8), nn.Dropout()
        self.qk, self.pv = matmul(), matmul()
        self.strange, self.relu = ReLU(), nn.ReLU()
        self.body = body
        for norm in (self.bn, self.bn2, self.ln, self.gn):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        return self.body(self, x)


def tokens(n, x):
    return n.conv(x).flatten(2).transpose(1, 2)


def attend(n, x, scaled=True):
    t = tokens(n, x)
    parts = n.qkv(t).reshape(1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind(0)
    p = n.qk(q * 0.5 if scaled else q, k.transpose(-2, -1)).softmax(-1)
    return n.out(n.pv(p, v).transpose(1, 2).reshape(1, 16, 8))


def windows(n, x):
    """Padded, rolled and parted as Swin does."""
    t = n.ln(tokens(n, x)).view(1, 4, 4, 8)
    t = F.pad(t, (0, 0, 0, 2, 0, 2)).roll((-1, -1), (1, 2))
    t = t.view(1, 2, 3, 2, 3, 8).permute(0, 1, 3, 2, 4, 5)
    return n.fc2(t.reshape(4, 9, 8))


def merged(n, x):
    """Four pixels side by side, as Swin's patches merge."""
    y = n.conv(x)
    y = torch.cat([y[..., ::2, ::2], y[..., 1::2, 1::2]], 1)
    return n.wide(y.relu())


def shuffled(n, x):
    y = n.conv(x).view(1, 2, 4, 4, 4).transpose(1, 2).reshape(1, 8, 4, 4)
    return n.next(y)


def levels(n, x):
    """One reader on two levels, each with a maker of its own."""
    return n.next(n.conv(x)), n.next(n.other(x)[..., ::2, ::2])


def summed(n, x):
    """Keys of two projections that are added up, as of positions."""
    t = n.conv(x).flatten(2).mT
    k = n.fc(t).unflatten(-1, (2, 4)).transpose(1, 2)
    # of one position, for all
    k = k + n.other(x[..., :1, :1]).view(1, 2, 1, 4)
    q = n.qkv(t)[..., :8].unflatten(-1, (2, 4)).transpose(1, 2)
    return n.qk(q, k.mT)


EXACT = {
    'relu': (lambda n, x: n.next(n.conv(x).relu()), 'layer: conv > next'),
    'in place': (
        lambda n, x: n.fc2(n.fc(tokens(n, x)).relu_()),
        'layer: conv > fc, layer: fc > fc2',
    ),
    'leaky': (
        lambda n, x: n.next(F.leaky_relu(n.conv(x), 0.1)),
        'layer: conv > next',
    ),
    'prelu': (lambda n, x: n.next(n.prelu(n.conv(x))), 'layer: conv > next'),
    'pool': (
        lambda n, x: n.next(F.max_pool2d(n.conv(x), 3, 2, 1)),
        'layer: conv > next',
    ),
    'mean': (
        lambda n, x: n.next(F.adaptive_avg_pool2d(n.conv(x), 1)),
        'layer: conv > next',
    ),
    'upsampled': (
        lambda n, x: n.next(F.interpolate(n.conv(x), scale_factor=2)),
        'layer: conv > next',
    ),
    'no bias': (lambda n, x: n.next(n.other(x)), 'layer: other > next'),
    'folded norm': (
        lambda n, x: n.next(n.bn(n.conv(x)).relu()),
        'layer: conv > next',
    ),
    'norm that stays': (
        lambda n, x: n.next(n.bn2(n.bn(n.conv(x)))),
        'norm: bn2 > next',
    ),
    'groups': (
        lambda n, x: n.up(n.depthwise(n.grouped(n.conv(x)))),
        'layer: conv > grouped, layer: grouped > depthwise, '
        'layer: depthwise > up',
    ),
    'transposed': (
        lambda n, x: n.next(torch.cat([n.up(n.conv(x))] * 2, 1)),
        'layer: conv > up, layer: up > next',
    ),
    'two readers': (
        lambda n, x: (lambda y: (n.next(y), n.up(y)))(n.conv(x).relu()),
        'layer: conv > next up',
    ),
    'two makers': (
        lambda n, x: n.wide(torch.cat([n.conv(x), n.other(x)], 1)),
        'layer: conv > wide, layer: other > wide',
    ),
    'levels': (levels, 'layer: conv other > next'),
    'flattened': (
        lambda n, x: n.flat(n.conv(x).flatten(1)),
        'layer: conv > flat',
    ),
    'shuffled': (shuffled, 'layer: conv > next'),
    'merged': (merged, 'layer: conv > wide'),
    'times a gate': (
        lambda n, x: (
            lambda y: n.next(
                y * n.fc(x.mean() * x.new_ones(8)).sigmoid().view(1, 8, 1, 1)
            )
        )(n.conv(x)),
        'layer: conv > next',
    ),
    'layer norm': (
        lambda n, x: n.fc2(n.drop(n.ln(tokens(n, x)))),
        'norm: ln > fc2',
    ),
    'group norm': (
        lambda n, x: n.next(n.gn(n.conv(x)).relu()),
        'norm: gn > next',
    ),
    'windows': (windows, 'norm: ln > fc2'),
    'attention': (
        attend,
        'layer: conv > qkv, qk: qkv >, pv: qkv > out',
    ),
    'summed keys': (summed, 'layer: conv > fc qkv, qk: other fc qkv >'),
}


def scaled(kit, body, change=lambda net: None):
    """What can be scaled and what not; how far factors move outputs."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    net = Net(body, kit.MatMul).double().eval()
    change(net)
    graph = kit.look(net, lambda: net(x), images=[x])
    flat = lambda y: torch.cat(  # noqa: E731
        [t.flatten() for t in (y if isinstance(y, tuple) else (y,))]
    )
    with torch.no_grad():
        before = flat(net(x))
        for norm, layer in graph.bn_folds.items():
            fold_batch_norm(net, norm, layer)
        scalings, unscaled = graph.find_scalings()
        for one in scalings:
            s = torch.rand(one.count, dtype=torch.float64) * 4 + 0.1
            for name, index in one.outputs.items():
                scale_outputs(net.get_submodule(name), 1 / spread(s, index))
            for name, index in one.inputs.items():
                scale_inputs(net.get_submodule(name), spread(s, index))
        after = flat(net(x))
    return (
        scalings,
        unscaled,
        float((after - before).norm() / (before.norm() + 1e-9)),
    )


def told(scalings):
    return ', '.join(
        f'{s.kind}: {" ".join(s.outputs)} > {" ".join(s.inputs)}'.strip()
        for s in scalings
    )


@pytest.mark.parametrize('name', EXACT)
def test_factors_change_nothing(kit, name):
    body, expected = EXACT[name]
    scalings, _, moved = scaled(kit, body)
    assert told(scalings) == expected
    assert moved < 1e-12


REFUSED = {
    'same name': (
        lambda n, x: n.next(n.strange(n.conv(x))),
        'conv',
        'strange is a ReLU of',
    ),
    'numbers': (
        lambda n, x: (lambda y: n.next(y) * sum(y.flatten().tolist()))(
            n.conv(x)
        ),
        'conv',
        'read by Python',
    ),
    'nothing there': (
        lambda n, x: n.flat(n.conv(x[:0]).flatten(1)),
        'conv',
        'flatten reads',
    ),
    'sum': (lambda n, x: n.next(n.conv(x) + n.other(x)), 'conv', 'add reads'),
    'constant': (lambda n, x: n.next(n.conv(x) + 1), 'conv', 'add reads'),
    'relu6': (lambda n, x: n.next(F.relu6(n.conv(x))), 'conv', 'relu6 reads'),
    'clip': (lambda n, x: n.next(n.conv(x).clamp(0)), 'conv', 'clamp reads'),
    'gelu': (lambda n, x: n.fc(F.gelu(tokens(n, x))), 'conv', 'gelu reads'),
    'gate of its own': (
        lambda n, x: (lambda y: n.next(y * y.sigmoid()))(n.conv(x)),
        'conv',
        'sigmoid reads',
    ),
    'square': (
        lambda n, x: (lambda y: n.next(y * y))(n.conv(x)),
        'conv',
        'mul reads',
    ),
    'slope of its own': (
        lambda n, x: n.next(F.prelu(n.conv(x), n.fc(x.flatten()[:8]))),
        'conv',
        'prelu reads',
    ),
    'rounded quotient': (
        lambda n, x: n.next(torch.div(n.conv(x), 2, rounding_mode='floor')),
        'conv',
        'div reads',
    ),
    'other reader': (
        lambda n, x: (lambda y: (n.next(y), y.mean()))(n.conv(x)),
        'conv',
        'mean reads',
    ),
    'output': (
        lambda n, x: (lambda y: (n.next(y), y))(n.conv(x)),
        'conv',
        'output of the detector',
    ),
    'nobody': (
        lambda n, x: (lambda y: n.next(y[:, :, :2]) + 0 * len(y.relu()))(
            n.conv(x)
        ),
        'conv',
        'nothing that is known',
    ),
    'padded by ones': (
        lambda n, x: n.next(F.pad(n.conv(x), (1, 1), value=1.0)),
        'conv',
        'pad reads',
    ),
    'norm': (lambda n, x: n.next(n.gn(n.conv(x))), 'conv', 'GroupNorm reads'),
    'other axis': (
        lambda n, x: n.fc2(n.conv(x).view(1, 16, 8)),
        'conv',
        'along other axes',
    ),
    'reads the image too': (
        lambda n, x: (n.conv(n.conv(x)[:, :3]), n.next(n.conv(x))),
        'conv',
        'also reads what cannot',
    ),
    'with itself': (
        lambda n, x: n.qk(tokens(n, x), tokens(n, x).mT),
        'conv',
        'with itself',
    ),
    'values of two': (
        lambda n, x: n.pv(n.conv(x), n.conv(x)),
        'conv',
        'multiplies it with another',
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_with_the_reason(kit, name):
    body, maker, why = REFUSED[name]
    scalings, unscaled, moved = scaled(kit, body)
    assert why in unscaled[maker]
    assert maker not in [n for s in scalings for n in s.outputs]
    assert moved < 1e-12


def hooked(net):
    net.next.register_forward_hook(lambda m, a, y: y.sigmoid())


def hooked_between(net):
    net.relu.register_forward_hook(lambda m, a, y: y.sigmoid())


def replaced(net):
    forward = net.next.forward
    net.next.forward = lambda x: forward(x.sigmoid())


def shared(net):
    net.conv.weight = net.other.weight


def shared_norm(net):
    net.gn.bias = net.bn.bias


@pytest.mark.parametrize(
    'change, maker, why',
    [
        (hooked, 'conv', 'a hook runs at next'),
        (hooked_between, 'conv', 'a hook runs at relu'),
        (replaced, 'conv', 'the forward of next was replaced'),
        (shared, 'conv', 'its weight is also that of other'),
        (shared_norm, 'gn', 'something else reads its bias'),
    ],
)
def test_modules_that_are_more_than_they_seem(kit, change, maker, why):
    def body(n, x):
        y = n.conv(x)
        return n.next(n.gn(y) if maker == 'gn' else n.relu(y))

    scalings, unscaled, moved = scaled(kit, body, change)
    assert why in unscaled[maker]
    assert scalings == []
    assert moved < 1e-12


def test_factors_of_queries_are_inverse_to_those_of_keys(kit):
    scalings, *_ = scaled(kit, attend)
    qk, pv = scalings[1:]
    index = qk.outputs['qkv']
    assert index[:8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert index[8:16].tolist() == [-1, -2, -3, -4, -5, -6, -7, -8]
    assert not index[16:].any()
    assert pv.outputs['qkv'][16:].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    # two heads of four channels
    assert qk.ports['qk', 'a'].tolist() == [[[[1, 2, 3, 4]], [[5, 6, 7, 8]]]]
    assert (qk.ports['qk', 'b'].mT == -qk.ports['qk', 'a']).all()
    assert list(pv.ports) == [('pv', 'b')]


def test_half_of_the_channels(kit):
    """What is added elsewhere stays, the rest is scaled."""

    def body(n, x):
        y = n.conv(x)
        return n.next(torch.cat([y[:, :4], y[:, 4:] + 1], 1))

    scalings, unscaled, moved = scaled(kit, body)
    (one,) = scalings
    assert one.outputs['conv'].tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert 'add reads' in unscaled['conv']
    assert moved < 1e-12
