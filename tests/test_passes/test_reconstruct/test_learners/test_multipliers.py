# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Multipliers of subsets that are learned."""

import pytest
import torch
from learner_kit import QUANTIZERS, layer_with

from mmdet_ptq.passes.reconstruct import SubsetMultipliers


def test_subset_multipliers():
    torch.manual_seed(0)
    layer = layer_with(QUANTIZERS['subset'](), torch.randn(4, 10))
    nearest = layer.weight_quantizer(layer.weight).detach()
    learner = SubsetMultipliers()
    (group,) = learner.start({'0': layer}, [], 100)
    assert group['cosine'] and len(group['params']) == 2
    torch.testing.assert_close(layer.quantized_weight().detach(), nearest)
    off = float((layer.weight.abs() - nearest.abs()).norm())
    for progress, factor in ((0, 1e-2), (0.2, 1e-2), (0.6, 5.5e-3), (1, 1e-3)):
        assert float(learner.penalty(progress)) == pytest.approx(
            factor * off, rel=1e-4
        )
    with torch.no_grad():
        group['params'][0].mul_(2)
    learner.harden()
    assert torch.equal(
        layer.rounded, layer.weight_quantizer(layer.weight * 2).detach()
    )
