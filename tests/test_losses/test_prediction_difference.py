# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""PD-Quant's loss, by hand and against PyTorch."""

import math

import pytest
import torch
from head_rows import LOG3, head, perturbed, random_head

from mmdet_ptq.losses import PredictionDifference


def test_prediction_difference_by_hand():
    # softmax at T = 2: (3/4, 1/4) and (1/2, 1/2)
    floats = head([[2 * LOG3, 0.0], [0.0, 0.0]], activation='softmax')
    quant = head([[0.0, 0.0], [0.0, 0.0]], activation='softmax')
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    loss = PredictionDifference(temperature=2.0, lambda_r=0.5, weight=3.0)
    targets = loss.targets([floats])
    got = float(loss([quant], targets))
    assert got == pytest.approx(3 * (kl / 2) / 0.5, rel=1e-5)
    assert loss.parts([quant], targets) == pytest.approx(
        {'bbox_head.kl': kl / 2, 'bbox_head.n': 2}, rel=1e-5
    )
    # sigmoid: 3/4 and 1/2 twice
    floats = head([[2 * LOG3, 2 * LOG3], [0.0, 0.0]])
    quant = head([[0.0, 0.0], [0.0, 0.0]])
    got = float(loss([quant], loss.targets([floats])))
    assert got == pytest.approx(3 * (2 * kl / 2) / 0.5, rel=1e-5)
    defaults = PredictionDifference()
    assert (defaults.temperature, defaults.lambda_r) == (4.0, 0.1)


def test_prediction_difference_equals_torch():
    floats = random_head(11, 'softmax')
    quant = perturbed(floats)
    loss = PredictionDifference(topk_per_level=None)
    got = loss([quant], loss.targets([floats]))
    want = torch.nn.functional.kl_div(
        (quant.logits / 4).log_softmax(1),
        (floats.logits / 4).softmax(1),
        reduction='batchmean',
    )
    assert float(got) == pytest.approx(float(want) / 0.1, rel=1e-4)
    got.backward()
    assert quant.logits.grad.any() and quant.boxes.grad is None
