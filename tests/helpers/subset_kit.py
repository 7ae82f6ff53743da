# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Subset quantizers, fitted, and the search written plainly."""

import math

import torch
from seeded import drawn

from mmdet_ptq.quantizers import SubsetQuantizer

# in 32nds, as in the paper
UNIVERSE = [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 17, 18, 20, 24, 32]


def make(magnitudes, scale, **kwargs):
    bits = int(math.log2(len(magnitudes))) + 1
    q = SubsetQuantizer(bits, **kwargs)
    q.set_range(-torch.tensor(scale), torch.zeros(len(scale)))
    q.magnitudes = torch.tensor(magnitudes)
    return q.eval()


def fitted(weight, bits, **kwargs):
    q = SubsetQuantizer(bits, **kwargs)
    assert q.fit(weight) is True and bool(q.initialized)
    return q.eval()


def samples(shape, kind, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw():
        w = torch.randn(shape, generator=generator)
        if kind == 'peaked':
            w = w * w.abs() * 1e-3
        elif kind == 'sparse':
            w = w * (torch.rand(shape, generator=generator) < 0.3)
        return w

    return drawn(draw)
