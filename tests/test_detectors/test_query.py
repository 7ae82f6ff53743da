# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of queries, beside those that MMDetection reads."""

import pytest
import torch
from adapter_kit import (
    QUERY,
    assert_same_detections,
    corners,
    detector,
    float_run,
    noisy,
    probabilities,
    same,
)

SELECTING = ['deformable_two_stage', 'dino']


@pytest.mark.parametrize('name', QUERY)
def test_query_rows_are_what_mmdet_reads(name):
    model, batch, _, anchor, (output,) = float_run(name)
    head, size = model.bbox_head, detector(name)[1]
    count = len(output.logits)
    with torch.no_grad():
        feats = model.extract_feat(batch['inputs'])
        inputs = model.forward_transformer(feats, batch['data_samples'])
        logits, boxes = head(**inputs)
    # the float model picks what it picked, so nothing has to be forced
    assert torch.equal(output.logits, logits[-1, 0])
    assert torch.equal(output.boxes, boxes[-1, 0])
    assert bool(anchor) == (name in SELECTING)
    before, head.test_cfg = head.test_cfg, dict(max_per_img=count)
    try:
        with torch.no_grad():
            (found,) = head.predict(
                **inputs,
                batch_data_samples=batch['data_samples'],
                rescale=False,
            )
    finally:
        head.test_cfg = before
    if output.activation == 'sigmoid':
        assert_same_detections(
            found.scores, found.labels, found.bboxes, output, size, count
        )
    else:
        best, labels = probabilities(output).max(1)
        order = best.argsort(descending=True)
        torch.testing.assert_close(best[order], found.scores)
        assert torch.equal(labels[order], found.labels)
        torch.testing.assert_close(
            corners(output)[order].clamp(0, size), found.bboxes
        )


def test_detr_boxes_by_hand():
    _, _, _, _, (output,) = float_run('detr')
    for row in (0, 7):
        cx, cy, w, h = (96 * v for v in output.boxes[row].tolist())
        want = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        rows = torch.tensor([row])
        found = output.decode(output.boxes[rows], rows)[0]
        assert found.tolist() == pytest.approx(want, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize('name', SELECTING)
def test_a_quantized_run_is_held_to_the_float_picks(name):
    model, batch, adapter, anchor, _ = float_run(name)
    other = noisy(model)
    own = adapter.anchor(other, batch)
    assert not torch.equal(own['queries'], anchor['queries'])
    with torch.no_grad():
        held = adapter.outputs(other, batch, anchor)
        free = adapter.outputs(other, batch, {})
        same(adapter.outputs(other, batch, own), free)
    assert not torch.equal(held[0].logits, free[0].logits)


def test_picks_are_rows_of_the_running_encoder():
    # queries of this detector are made of the picked rows alone, so that
    # picking in another order permutes the outputs
    model, batch, adapter, anchor, (output,) = float_run(SELECTING[0])
    order = torch.randperm(len(output.logits))
    with torch.no_grad():
        (found,) = adapter.outputs(
            model, batch, dict(queries=anchor['queries'][:, order])
        )
    torch.testing.assert_close(
        found.logits, output.logits[order], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        found.boxes, output.boxes[order], rtol=1e-4, atol=1e-4
    )
