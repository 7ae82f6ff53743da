# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights, biases and ends of ranges that are learned."""

import pytest
import torch
from learner_kit import QUANTIZERS, layer_with

from mmdet_ptq.passes.reconstruct import LearnedWeights
from mmdet_ptq.quantizers import UniformQuantizer


def test_learned_weights_take_bias_and_ranges_along():
    torch.manual_seed(0)
    layer = layer_with(QUANTIZERS['uniform'](), torch.randn(4, 10))
    layer.shift_bias(torch.full((4,), 0.25))
    act = UniformQuantizer(4)
    act.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    learner = LearnedWeights()
    groups = learner.start({'0': layer}, [act], 100)
    # ends of weights, weights, biases, ends of activations
    rates = [g['lr'] for g in groups]
    levels = 2**layer.weight_quantizer.bits - 1
    width = layer.weight_quantizer.high - layer.weight_quantizer.low
    step = float(width.mean()) / levels
    ends = 2e-4 * 20**0.5
    assert rates == pytest.approx(
        [ends * step, 2 / 100 * step, 1e-3, ends * 3 / 15]
    )
    assert all(g['cosine'] for g in groups)
    nearest = layer.weight_quantizer(layer.weight).detach()
    torch.testing.assert_close(layer.quantized_weight().detach(), nearest)
    with torch.no_grad():
        groups[1]['params'][0].add_(0.2)
        groups[2]['params'][0].add_(1.0)
    learner.harden()
    assert not torch.equal(layer.rounded, nearest)
    torch.testing.assert_close(layer.bias_shift, torch.full((4,), 1.25))
    assert not layer.bias_shift.requires_grad
    absolute = LearnedWeights(relative=False, lr_bias=0.5)
    groups = absolute.start({'0': layer}, [act], 100)
    assert [g['lr'] for g in groups] == [1e-3, 1e-5, 0.5, 0.1]
    assert not any(g['cosine'] for g in groups)


def test_learned_weights_of_uneven_levels():
    layer = layer_with(QUANTIZERS['subset'](), torch.randn(4, 10))
    groups = LearnedWeights().start({'0': layer}, [], 100)
    step = 2 * float(layer.weight.abs().max()) / 2**3
    assert layer.weight_quantizer.bits == 3
    assert groups[0]['lr'] == pytest.approx(2 / 100 * step)
