# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""IGQ-ViT's perturbation, against plain loops in Python's numbers."""

import math

import pytest
import torch

from mmdet_ptq.losses import OutputPerturbation
from mmdet_ptq.structures import DetectionOutputs


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def roi_outputs(seed):
    """Two stages of boxes of each class, an RPN and masks."""
    stages = [
        DetectionOutputs(
            f'roi_head.bbox_head.{i}',
            2 * draw(7, 4, seed=seed + i),
            'softmax',
            3,
            draw(7, 3, 4, seed=seed + 10 + i),
        )
        for i in range(2)
    ]
    rpn = DetectionOutputs('rpn_head', draw(9, 1, seed=seed), 'sigmoid')
    logits = draw(5, 16, seed=seed + 20)
    masks = DetectionOutputs('roi_head.mask_head', logits, 'sigmoid')
    return [rpn, *stages, masks]


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def by_hand(exact, ours):
    total = 0.0
    for a, b in zip(exact[1:3], ours[1:3], strict=True):
        kl, boxes, count = 0.0, 0.0, 0
        rows = zip(a.logits.tolist(), b.logits.tolist(), strict=True)
        for i, (x, y) in enumerate(rows):
            p, q = softmax(x), softmax(y)
            kl += sum(u * math.log(u / v) for u, v in zip(p, q, strict=True))
            label = max(range(4), key=p.__getitem__)
            if label < 3:
                count += 1
                off = a.boxes[i, label] - b.boxes[i, label]
                boxes += sum(abs(x) for x in off.tolist())
        assert 0 < count < 7
        total += kl / 7 + boxes / count
    a, b = exact[3].logits.sigmoid(), ours[3].logits.sigmoid()
    masks = [
        sum(abs(x - y) for x, y in zip(u, v, strict=True)) / 16
        for u, v in zip(a.tolist(), b.tolist(), strict=True)
    ]
    return total + sum(masks) / 5


def test_equation_a_over_the_stages_of_a_cascade():
    exact, ours = roi_outputs(0), roi_outputs(100)
    loss = OutputPerturbation()
    found = float(loss(ours, loss.targets(exact)))
    assert found == pytest.approx(by_hand(exact, ours), rel=1e-5)
    assert float(loss(exact, loss.targets(exact))) == 0
    half = OutputPerturbation(weight=0.5)
    assert float(half(ours, half.targets(exact))) == pytest.approx(found / 2)


def test_queries_with_sigmoids():
    logits = torch.tensor([[-2.0, 0.0], [-3.0, -1.0]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    one = [DetectionOutputs('bbox_head', logits, 'sigmoid', None, boxes)]
    two = [
        DetectionOutputs(
            'bbox_head', logits + 1, 'sigmoid', None, boxes + 0.25
        )
    ]

    def kl(x):
        p, q = (1 / (1 + math.exp(-v)) for v in (x, x + 1))
        both = ((p, q), (1 - p, 1 - q))
        return sum(u * math.log(u / v) for u, v in both)

    means = sum(kl(x) for x in (-2, 0, -3, -1)) / 2
    loss = OutputPerturbation(least=0.3)
    # the second query has no class: sigmoid(-1) is less than 0.3
    found = float(loss(two, loss.targets(one)))
    assert found == pytest.approx(means + 1.0, rel=1e-5)
    none = OutputPerturbation(least=0.9)
    assert float(none(two, none.targets(one))) == pytest.approx(means)


def test_without_rows_and_raw():
    loss = OutputPerturbation()
    empty = [
        DetectionOutputs('roi_head.mask_head', draw(0, 4, seed=0), 'sigmoid')
    ]
    assert float(loss(empty, loss.targets(empty))) == 0
    x, y = draw(3, seed=0), draw(3, seed=1)
    expected = float((x - y).square().mean())
    assert float(loss([y], loss.targets([x]))) == pytest.approx(expected)


def test_bad_input():
    with pytest.raises(ValueError, match='least'):
        OutputPerturbation(least=2)
