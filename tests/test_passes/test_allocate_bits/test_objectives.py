# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Distances by hand, and against the divergences that they approximate."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from adapter_kit import float_run
from allocate_kit import planned
from reconstruct_model import Net
from torch import nn

from mmdet_ptq.calibration import Images
from mmdet_ptq.detectors import RawAdapter
from mmdet_ptq.errors import QuantConfigError
from mmdet_ptq.layers import float_mode
from mmdet_ptq.losses.rows import confidence, divergence
from mmdet_ptq.passes.allocate_bits.objectives import (
    Features,
    Predictions,
    distance_of,
)
from mmdet_ptq.structures import DetectionOutputs

pytestmark = pytest.mark.filterwarnings('ignore:no detector adapter')


def test_errors_of_features_are_relative():
    distance = Features(Net())
    one, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0]])
    targets = distance.targets([one, other])
    assert distance([one, other], targets) == 0
    # (1 + 1) / (1 + 4) and 4 / 16, of two maps
    found = distance([one + 1, other - 2], targets)
    assert float(found) == pytest.approx((2 / 5 + 4 / 16) / 2)


def test_what_follows_the_backbone_is_not_run():
    session = planned()
    calls = []
    session.model.neck[0].register_forward_hook(lambda *_: calls.append(1))
    with session.cache() as cache, float_mode(session.model):
        images = Images(session, cache, RawAdapter(), [])
        found = Features(session.model).run(images, 0)
    assert not calls
    assert [tuple(t.shape) for t in found] == [(1, 8, 12, 12)]


def outputs(logits, activation, **more):
    return DetectionOutputs('bbox_head', logits, activation, **more)


@pytest.mark.parametrize('activation', ['sigmoid', 'softmax'])
def test_classes_count_by_their_divergence(activation):
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=rng, dtype=torch.float64)
    change = 1e-3 * torch.randn(6, 4, generator=rng, dtype=torch.float64)
    background = 3 if activation == 'softmax' else None
    before = outputs(logits, activation, background=background)
    after = outputs(logits + change, activation, background=background)
    distance = Predictions(nn.Module())
    targets = distance.targets([before])
    weight = confidence(before)[0]
    weight = weight / weight.sum()
    each = divergence(logits + change, logits, activation)
    found = float(distance([after], targets))
    assert found == pytest.approx(float((weight * each).sum()), rel=1e-2)


def test_boxes_count_by_their_relative_error():
    # confidences 1 and 0: the first row is all
    logits = torch.tensor([[40.0, -40.0], [-40.0, -40.0]])
    boxes = torch.tensor([[[3.0, 0, 0, 4], [9.0, 9, 9, 9]]] * 2)
    before = outputs(logits, 'sigmoid', boxes=boxes)
    moved = boxes.clone()
    moved[0, 0, 1] += 1  # of the likeliest class: 1 / 25
    moved[0, 1] += 7  # of another
    moved[1] += 7  # of a row without confidence
    distance = Predictions(nn.Module())
    targets = distance.targets([before, before])
    after = outputs(logits, 'sigmoid', boxes=moved)
    found = float(distance([after, before], targets))
    assert found == pytest.approx(1 / 25 / 2)


def test_masks_count_by_their_pixels():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, generator=rng, dtype=torch.float64)
    change = 1e-3 * torch.ones_like(logits)
    name = 'roi_head.mask_head'
    one, other = (
        DetectionOutputs(name, t, 'sigmoid') for t in (logits, logits + change)
    )
    distance = Predictions(nn.Module())
    found = distance([other], distance.targets([one]))
    each = divergence(logits + change, logits, 'sigmoid') / 8
    assert float(found) == pytest.approx(float(each.mean()), rel=1e-2)


def test_tensors_that_nobody_described_are_relative():
    distance = Predictions(nn.Module())
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([2.0])
    targets = distance.targets([one, other])
    found = distance([one + 1, other + 1], targets)
    # each head once: 2 / 25 and 1 / 4, the mean of both
    assert float(found) == pytest.approx((2 / 25 + 1 / 4) / 2)


def test_roi_heads_alone():
    model, _, _, _, found = float_run('faster_rcnn')
    images = SimpleNamespace(run=lambda j: found)
    rpn = SimpleNamespace(roles={'rpn'})
    assert Predictions(model).reaches(rpn)
    assert not Predictions(model, roi=True).reaches(rpn)
    names = {o.name for o in Predictions(model).run(images, 0)}
    assert names == {'rpn_head', 'roi_head.bbox_head'}
    distance = Predictions(model, roi=True)
    some = distance.run(images, 0)
    assert {o.name for o in some} == {'roi_head.bbox_head'}
    targets = distance.targets(some)
    assert distance(some, targets) == 0
    other = [replace(o, boxes=o.boxes * 1.5) for o in some]
    # half of the size off, everywhere, and the mean over images
    assert float(distance(other, targets)) == pytest.approx(0.25, rel=1e-4)


def test_what_a_detector_lacks_is_named():
    session = planned()
    with pytest.raises(QuantConfigError, match=r"'roi'.*Net has none"):
        distance_of(session, 'roi')
    session.model.body = session.model.backbone
    del session.model.backbone
    with pytest.raises(QuantConfigError, match=r"'feature'.*Net has none"):
        distance_of(session, 'feature')
