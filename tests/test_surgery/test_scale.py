# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Factors of channels in weights."""

import copy

import pytest
import torch
from torch import nn
from twin_kit import LAYERS

from mmdet_ptq.surgery import (
    input_columns,
    output_rows,
    scale_inputs,
    scale_outputs,
)

PLAIN = [
    name
    for name, (layer, _) in LAYERS.items()
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
]


def copy_of(name):
    layer, (x, *_) = LAYERS[name]
    return copy.deepcopy(layer).double(), x.double()


def along(layer, factors):
    return factors if isinstance(layer, nn.Linear) else factors.view(-1, 1, 1)


@pytest.mark.parametrize('name', PLAIN)
@torch.no_grad()
def test_outputs(name):
    layer, x = copy_of(name)
    y = layer(x)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    factors = torch.rand(y.shape[axis]).double() + 0.5
    scale_outputs(layer, factors)
    torch.testing.assert_close(layer(x), y * along(layer, factors))


@pytest.mark.parametrize('name', PLAIN)
@torch.no_grad()
def test_inputs(name):
    layer, x = copy_of(name)
    y = layer(x)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    factors = torch.rand(x.shape[axis]).double() + 0.5
    scale_inputs(layer, factors)
    torch.testing.assert_close(layer(x / along(layer, factors)), y)


@pytest.mark.parametrize('name', PLAIN)
@torch.no_grad()
def test_rows_and_columns_are_the_weights_of_a_channel(name):
    layer, x = copy_of(name)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    layer.weight.abs_()
    rows, columns = output_rows(layer).clone(), input_columns(layer)
    assert len(rows) == layer(x).shape[axis]
    assert len(columns) == x.shape[axis]
    factors = torch.arange(1.0, 1 + len(rows)).double()
    scale_outputs(layer, factors)
    torch.testing.assert_close(output_rows(layer), rows * factors[:, None])
    factors = torch.arange(1.0, 1 + len(columns)).double()
    columns = input_columns(layer).clone()
    scale_inputs(layer, factors)
    torch.testing.assert_close(
        input_columns(layer), columns * factors[:, None]
    )


@torch.no_grad()
def test_norms():
    norm = nn.LayerNorm(4).double()
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4).double()
    y, factors = norm(x), torch.tensor([1.0, 2, 3, 4]).double()
    scale_outputs(norm, factors)
    torch.testing.assert_close(norm(x), y * factors)
