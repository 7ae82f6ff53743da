# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A row times the weight is the output at its position."""

import pytest
import torch
from mmcv import ops
from torch import nn

from mmdet_ptq.calibration.rows import (
    sample_rows,
    steering,
    weight_matrix,
    weight_tensor,
)

LAYERS = dict(
    linear=lambda: nn.Linear(6, 4, bias=False),
    conv=lambda: nn.Conv2d(6, 4, 3, padding=1, bias=False),
    strided=lambda: nn.Conv2d(6, 4, (3, 2), 2, (1, 2), bias=False),
    dilated=lambda: nn.Conv2d(6, 4, 3, padding=2, dilation=2, bias=False),
    grouped=lambda: nn.Conv2d(6, 4, 3, groups=2, bias=False),
    depthwise=lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    reflected=lambda: nn.Conv2d(
        6, 4, 3, padding=1, padding_mode='reflect', bias=False
    ),
    transposed=lambda: nn.ConvTranspose2d(6, 4, 2, 2, bias=False),
    odd=lambda: nn.ConvTranspose2d(
        6, 4, 3, 2, 1, 1, groups=2, dilation=2, bias=False
    ),
    deformable=lambda: ops.DeformConv2dPack(6, 4, 3, padding=1, groups=2),
    modulated=lambda: ops.ModulatedDeformConv2dPack(
        6, 4, 3, padding=1, deform_groups=2, bias=False
    ),
)


@pytest.mark.parametrize('name', LAYERS)
@torch.no_grad()
def test_rows_give_the_output(name):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    if hasattr(layer, 'conv_offset'):
        layer.conv_offset.weight.normal_()
    x = torch.randn((2, 5, 6) if name == 'linear' else (2, 6, 7, 5))
    with steering(dict(a=layer)) as found:
        output = layer(x)
    assert bool(found) == (name in ('deformable', 'modulated'))
    told = found.get('a', ())
    if name != 'linear':
        output = output.movedim(1, -1)
    output = output.reshape(-1, output.shape[-1])
    rows = sample_rows(
        layer,
        x,
        10**6,
        torch.Generator().manual_seed(1),
        told,
    )
    order = torch.randperm(
        len(output), generator=torch.Generator().manual_seed(1)
    )
    matrix = weight_matrix(layer, layer.weight)
    found = rows @ matrix.mT  # (G, T, R)
    found = found.permute(1, 0, 2).flatten(1)
    torch.testing.assert_close(found, output[order], atol=1e-4, rtol=1e-4)
    assert torch.equal(weight_tensor(layer, matrix), layer.weight)
    some = sample_rows(
        layer,
        x,
        3,
        torch.Generator().manual_seed(1),
        told,
    )
    assert torch.equal(some, rows[:, :3])
