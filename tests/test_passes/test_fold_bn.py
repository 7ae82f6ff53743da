# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that folds."""

import torch
from two_levels import PASSES, RULES, Tiny, batches

from mmdet_ptq.apis import quantize_detector
from mmdet_ptq.surgery import FoldedNorm


def test_folding_twice_is_folding_once():
    model = Tiny().eval()
    passes = [PASSES[0], *PASSES]
    session = quantize_detector(
        model, batches(), dict(bits='w8a8', rules=RULES, passes=passes)
    )
    once = Tiny().eval()
    quantize_detector(
        once, batches(), dict(bits='w8a8', rules=RULES, passes=PASSES)
    )
    assert session.edits == [FoldedNorm('backbone.1', 'backbone.0')]
    for name, tensor in once.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
