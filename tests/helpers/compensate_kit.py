# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers of every kind, with inputs and their moments."""

import torch
from torch import nn

from mmdet_ptq.calibration import sample_rows
from mmdet_ptq.layers import convert
from mmdet_ptq.passes.compensate.moments import PairedMoments, Product
from mmdet_ptq.quantizers import (
    CodebookQuantizer,
    LLAQuantizer,
    SubsetQuantizer,
    UniformQuantizer,
)

LAYERS = dict(
    linear=lambda: nn.Linear(12, 6),
    conv=lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    grouped=lambda: nn.Conv2d(8, 6, (3, 2), groups=2),
    depthwise=lambda: nn.Conv2d(6, 6, 3, groups=6),
    transposed=lambda: nn.ConvTranspose2d(4, 6, 2, 2, groups=2),
)
WEIGHT = dict(role='weight', symmetric=True)


def uniform(granularity, **more):
    def make(layer):
        axis = layer.weight_axis
        q = UniformQuantizer(
            3, granularity=granularity, axis=axis, **WEIGHT, **more
        )
        rows = q.granularity.rows(layer.weight.detach())
        q.set_range(rows.amin(1)[None], rows.amax(1)[None])
        return q

    return make


def fitted(kind, bits=3, **more):
    def make(layer):
        q = kind(bits, axis=layer.weight_axis, role='weight', **more)
        q.fit(layer.weight.detach())
        return q

    return make


GRIDS = dict(
    tensor=uniform('tensor'),
    channel=uniform('channel'),
    llaq=fitted(LLAQuantizer),
    subset=fitted(SubsetQuantizer),
    codebook=fitted(CodebookQuantizer, 2, granularity='channel'),
)


def twin(kind, grid='channel'):
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[kind]())
    convert(model)
    layer = model[0]
    layer.attach(weight=GRIDS[grid](layer))
    return layer


def data(layer, images=8, noise=0.1):
    """Inputs of which channels depend on each other, and noisy ones."""
    channels = getattr(layer, 'in_channels', None)
    shape = (3, 20, 12) if channels is None else (1, channels, 9, 8)
    exact = [
        torch.randn(shape) + torch.randn(*shape[:1], *[1] * (len(shape) - 1))
        for _ in range(images)
    ]
    return exact, [x + noise * torch.randn_like(x) for x in exact]


def gathered(layer, exact, noisy, most=10**4):
    moments = PairedMoments(Product(layer, most))
    for i, pair in enumerate(zip(noisy, exact, strict=True)):
        rows = [
            sample_rows(layer, x, 10**6, torch.Generator().manual_seed(i))
            for x in pair
        ]
        moments.add(rows[0], moments.product(rows[1]), i % 2)
    return moments
