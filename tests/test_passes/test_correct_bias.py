# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Biases that take the mean error away."""

import torch
from two_levels import PASSES, RULES, Tiny, batches, inputs_of

from mmdet_ptq.apis import quantize_detector


def test_bias_correction_takes_the_mean_error_away():
    """With float inputs and no borders the output mean becomes exact."""
    data = batches()
    reference = Tiny().eval()
    x = torch.cat(inputs_of(reference, 'bbox_head.0', data, 'predict')[::2])
    passes = [*PASSES, dict(type='CorrectBias')]
    rules = [
        dict(match='bbox_head.*', weight=dict(granularity='tensor')),
        dict(match='backbone.3', weight={}),
    ]
    errors = {}
    for corrected, chosen in ((False, PASSES), (True, passes)):
        model = Tiny().eval()
        # one level only: then E[x] is the mean of x
        model.forward = (
            lambda inputs, data_samples=None, mode='tensor', m=model: (
                m.bbox_head(m.backbone(torch.stack(list(inputs))))
            )
        )
        quantize_detector(
            model, data, dict(bits='w2a8', rules=rules, passes=chosen)
        )
        with torch.no_grad():
            error = model.bbox_head[0](x) - reference.bbox_head[0](x)
        errors[corrected] = error.mean((0, 2, 3)).abs().max().item()
        assert error.abs().max() > 1e-2
    assert errors[False] > 1e-3
    assert errors[True] < 1e-5


def test_bias_of_a_layer_of_several_levels_stays():
    plain, model = Tiny().eval(), Tiny().eval()
    passes = [*PASSES, dict(type='CorrectBias')]
    quantize_detector(
        model, batches(), dict(bits='w2a8', rules=RULES, passes=passes)
    )
    for index in (0, 2):
        assert torch.equal(
            model.bbox_head[index].bias, plain.bbox_head[index].bias
        )
    assert not torch.equal(model.backbone[3].bias, plain.backbone[3].bias)
