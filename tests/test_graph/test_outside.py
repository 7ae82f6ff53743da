# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Products that are no layers are seen, wherever they are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Outer(nn.Module):
    """A layer, and a module without children that multiplies."""

    def __init__(self, body):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.part = Part(body)

    def forward(self, x):
        return self.part(self.conv(x))


class Part(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(4, 4))
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def rows(x):
    return x.flatten(2)


@pytest.mark.parametrize(
    ('name', 'body'),
    [
        ('matmul', lambda m, x: rows(x) @ rows(x).mT),
        ('matmul', lambda m, x: torch.matmul(rows(x), rows(x).mT)),
        ('bmm', lambda m, x: torch.bmm(rows(x), rows(x).mT)),
        ('einsum', lambda m, x: torch.einsum('bchw,cd->bdhw', x, m.kernel)),
        ('linear', lambda m, x: F.linear(rows(x).mT, m.kernel)),
        ('conv2d', lambda m, x: F.conv2d(x, m.kernel[..., None, None])),
        (
            'scaled_dot_product_attention',
            lambda m, x: F.scaled_dot_product_attention(*[rows(x)] * 3),
        ),
    ],
)
def test_each_product(kit, name, body):
    # with and without a child: both kinds of modules are watched
    for child in (None, nn.ReLU()):
        model = Outer(body)
        model.part.add_module('child', child)
        graph = kit.look(model)
        assert graph.products == {
            'part': f'multiplies outside of layers ({name})'
        }


def test_cells(kit):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.GRU(256, 2))
    assert kit.look(model).products == {
        '2': 'multiplies outside of layers (gru)'
    }


def test_what_is_no_product_of_the_image(kit):
    # anchors could be computed beforehand; whole numbers are indices
    model = Outer(lambda m, x: x + (m.kernel @ m.kernel).sum())
    model.part.add_module('child', nn.ReLU())
    assert kit.look(model).products == {}
    graph = kit.look(Outer(lambda m, x: x.long().flatten(2).float()))
    assert graph.products == {} and graph.borrowed == {}


class Borrowing(nn.Module):
    """SwinV2 reads the weight of a linear layer that it never calls."""

    def __init__(self, read):
        super().__init__()
        self.qkv = nn.Linear(16, 4)
        self.proj = nn.Linear(4, 2)
        self.read = read

    def forward(self, x):
        return self.proj(F.linear(x, self.read(self.qkv)))


@pytest.mark.parametrize(
    'read',
    [
        lambda layer: layer.weight,
        lambda layer: layer.weight.view(2, 2, -1).flatten(0, 1),
        lambda layer: F.normalize(layer.weight),
        lambda layer: layer.weight.data,
    ],
)
def test_weights_read_past_their_layer(kit, read):
    model = nn.Sequential(nn.Identity(), Borrowing(read))
    graph = kit.look(model)
    assert graph.uncalled == ['1.qkv'] and list(graph.layers) == ['1.proj']
    assert graph.borrowed == {
        '1.qkv': 'weight used without calling the layer (in 1)'
    }
    assert graph.products == {'1': 'multiplies outside of layers (linear)'}


def test_asking_for_a_device_uses_no_weight(kit):
    model = Borrowing(
        lambda layer: (
            torch.ones(
                4, 16, dtype=layer.weight.dtype, device=layer.weight.device
            )
            + 0 * torch.zeros_like(layer.weight)
        )
    )
    graph = kit.look(model)
    assert graph.uncalled == ['qkv'] and graph.borrowed == {}


def test_a_called_layer_is_not_borrowed(kit):
    model = Borrowing(lambda layer: layer.weight)
    image = torch.rand(1, 3, 16, 16)

    def both():
        model.qkv(image)
        return model(image)

    assert kit.look(model, both).borrowed == {}
