# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmdet_ptq.structures import NormLink


class Net(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gn = nn.GroupNorm(2, 4)
        self.body = body

    def forward(self, x):
        x = self.conv(x)
        return self.body(self, x, x.flatten(2).transpose(1, 2))


def test_consumers_of_one_tensor_share(kit):
    graph = kit.look(Net(lambda n, x, t: (n.a(t), n.b(t))))
    assert graph.shared_ports == [
        [('conv', 'input')],
        [('a', 'input'), ('b', 'input')],
    ]


def test_equal_but_distinct_tensors_do_not_share(kit):
    graph = kit.look(Net(lambda n, x, t: (n.a(t + 1), n.b(t + 1))))
    assert len(graph.shared_ports) == 3


def test_sharing_is_transitive_over_calls(kit):
    """A head layer on two levels ties what else reads either level."""

    class Levels(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv2d(3, 3, 1)
            self.cls, self.reg = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 4, 1)
            self.extra = nn.Conv2d(3, 1, 1)

        def forward(self, x):
            y = self.down(x)
            return [self.cls(x), self.reg(y), self.cls(y), self.extra(x)]

    graph = kit.look(Levels())
    assert graph.shared_ports == [
        [
            ('down', 'input'),
            ('cls', 'input'),
            ('reg', 'input'),
            ('extra', 'input'),
        ]
    ]


def test_both_ports_of_a_product(kit):

    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.mm = kit.MatMul()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            return self.mm(y, y) + self.mm(a=y, b=y.mT)

    graph = kit.look(Gram(), shape=(1, 4, 4))
    assert graph.shared_ports == [
        [('fc', 'input')],
        [('mm', 'a'), ('mm', 'b')],
    ]


def swin_like(net, x, t):
    y = net.norm(t)
    y = F.pad(y, (0, 0, 0, 8)).roll(2, 1)
    y = y.view(-1, 8, 4)
    return t + net.a(y).reshape(1, -1, 4)[:, : t.shape[1]]


@pytest.mark.parametrize(
    'body, layers, via, exclusive',
    [
        (lambda n, x, t: n.a(n.norm(t)), ('a',), (), True),
        (lambda n, x, t: (n.a(n.norm(t)), n.b(t)), ('a',), (), True),
        (swin_like, ('a',), ('pad', 'roll', 'view'), True),
        (lambda n, x, t: [f(n.norm(t)) for f in (n.a, n.b)], ('a',), (), True),
        # post-norm: the residual reads the norm as well
        (lambda n, x, t: (lambda y: y + n.a(y))(n.norm(t)), ('a',), (), False),
        (
            lambda n, x, t: (lambda y: n.b(n.a(y + 1)) + n.b(y))(n.norm(t)),
            ('b',),
            (),
            False,
        ),
        # the norm is itself an output
        (
            lambda n, x, t: (lambda y: (y, n.a(y)))(n.norm(t)),
            ('a',),
            (),
            False,
        ),
        # the layer reads something else as well
        (lambda n, x, t: n.a(n.norm(t)) + n.a(t), ('a',), (), False),
        (lambda n, x, t: n.a(torch.cat([n.norm(t), t])), None, (), False),
        (lambda n, x, t: n.a(n.norm(t).relu()), None, (), False),
        (
            lambda n, x, t: n.a(n.gn(x).flatten(2).mT),
            ('a',),
            ('flatten', 'mT'),
            True,
        ),
    ],
)
def test_norm_links(kit, body, layers, via, exclusive):
    graph = kit.look(Net(body))
    if layers is None:
        assert graph.norm_links == []
        return
    (link,) = graph.norm_links
    if link.layers == ('a', 'b'):  # the case of one norm call for each
        layers = ('a', 'b')
    sums = ('a',) if layers == ('b',) else ()
    pads = ('',) if 'pad' in via else ()
    assert link == NormLink(
        'gn' if 'mT' in via else 'norm', layers, via, exclusive, sums, pads
    )


def test_layers_behind_a_sum(kit):
    """Queries and keys of DETR: the norm plus a positional encoding."""

    def body(net, x, t):
        y = net.norm(t)
        pos = torch.ones_like(y)
        return y + net.b(y) + net.a((pos + y).transpose(0, 1)).mT.sum()

    (link,) = kit.look(Net(body)).norm_links
    assert link.layers == ('b',) and link.sums == ('a',)
    assert not link.exclusive


def test_only_a_sum_is_read(kit):
    body = lambda n, x, t: n.a(n.norm(t) + 1)  # noqa: E731
    (link,) = kit.look(Net(body)).norm_links
    assert (link.layers, link.sums, link.exclusive) == ((), ('a',), False)


def test_windows_may_be_padded(kit):
    """Also where this forward's map is a whole number of windows."""

    def body(net, x, t):
        y = net.norm(t).view(1, 4, 4, 4, 4, 4).transpose(2, 3)
        return net.a(y.reshape(-1, 16, 4))

    (link,) = kit.look(Net(body)).norm_links
    assert link.exclusive and link.pads == ('',)
