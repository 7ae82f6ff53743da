# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Codebooks that are learned."""

import torch
from learner_kit import QUANTIZERS, layer_with

from mmdet_ptq.passes.reconstruct import AdaRound, LearnedCodebook
from mmdet_ptq.passes.reconstruct.trainer import average_gradients


def test_gradients_of_a_codebook_are_cut():
    """The norm of each layer's is 1 at most, direction and others stay."""
    layer = layer_with(QUANTIZERS['llaq'](), torch.randn(4, 10))
    codebook, rounding = LearnedCodebook(), AdaRound()
    groups = [*codebook.start({'0': layer}, [], 9)]
    groups += rounding.start({'0': layer}, [], 9)
    optimizer = torch.optim.Adam(groups)
    for group in groups:
        for parameter in group['params']:
            parameter.grad = torch.full_like(parameter, 3.0)
    average_gradients(optimizer)
    quantizer = layer.weight_quantizer
    for parameter in (quantizer.log_k, quantizer.a):
        share = parameter.numel() ** -0.5
        torch.testing.assert_close(
            parameter.grad, torch.full_like(parameter, share)
        )
        parameter.grad = parameter.grad / 8
    (soft,) = groups[-1]['params']
    assert bool((soft.grad == 3).all())
    average_gradients(optimizer)
    torch.testing.assert_close(
        quantizer.a.grad, torch.full_like(quantizer.a, share / 8)
    )


def test_codebook_is_fixed_before_rounding_decodes():
    layer = layer_with(QUANTIZERS['llaq'](), torch.randn(4, 30))
    codebook, rounding = LearnedCodebook(), AdaRound()
    with torch.no_grad():  # as in a pass
        codebook.start({'0': layer}, [], 100)
        rounding.start({'0': layer}, [], 100)
    quantizer = layer.weight_quantizer
    before = layer.quantized_weight().detach()
    with torch.no_grad():
        quantizer.a.add_(0.3)
    moved = layer.quantized_weight()
    assert not torch.equal(moved, before)
    moved.sum().backward()
    assert quantizer.a.grad.any() and quantizer.log_k.grad.any()
    codebook.harden()
    rounding.harden()
    assert torch.equal(quantizer(layer.rounded), layer.rounded)
