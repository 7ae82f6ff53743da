# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of two-stage heads, beside those that MMDetection reads."""

import copy

import pytest
import torch
from adapter_kit import (
    detector,
    float_run,
    noisy,
    prepared,
    probabilities,
    same,
)
from mmdet.models.roi_heads import StandardRoIHead

from mmdet_ptq.detectors import find_adapter
from mmdet_ptq.losses import DetectionLoss, PredictionDifference

ROI = ['faster_rcnn', 'mask_rcnn', 'cascade']


@pytest.mark.parametrize('name', ROI)
def test_roi_rows_are_what_mmdet_reads(name):
    model, batch, _, anchor, outputs = float_run(name)
    meta, head = batch['data_samples'][0].metainfo, model.roi_head
    size = detector(name)[1]
    with torch.no_grad():
        feats = model.extract_feat(batch['inputs'])
        proposals = model.rpn_head.predict(feats, batch['data_samples'])
    assert torch.equal(anchor['rois.0'][:, 1:], proposals[0].bboxes)
    cascade = name == 'cascade'
    stages = range(3) if cascade else [None]
    assert [o.name for o in outputs] == ['rpn_head'] + [
        'roi_head.bbox_head' + ('' if s is None else f'.{s}') for s in stages
    ]
    rois, scores = anchor['rois.0'], []
    for k, output in enumerate(outputs[1:]):
        box_head = head.bbox_head[k] if cascade else head.bbox_head
        extractor = (
            head.bbox_roi_extractor[k] if cascade else head.bbox_roi_extractor
        )
        assert torch.equal(rois, anchor[f'rois.{k}'])
        with torch.no_grad():
            pooled = extractor(feats[: extractor.num_inputs], rois)
            logits, deltas = box_head(pooled)
        scores.append(logits)
        assert torch.equal(output.logits, logits)
        assert torch.equal(output.boxes.flatten(1), deltas)
        found = box_head._predict_by_feat_single(
            rois, logits, deltas, meta, rescale=False, rcnn_test_cfg=None
        )
        boxes = found.bboxes.unflatten(1, (-1, 4))
        torch.testing.assert_close(found.scores[:, :-1], probabilities(output))
        rows = torch.arange(len(rois))
        classes = [None] if output.boxes.dim() == 2 else range(10)
        for c in classes:
            picked = output.boxes if c is None else output.boxes[:, c]
            torch.testing.assert_close(
                output.decode(picked, rows).clamp(0, size),
                boxes[:, c or 0],
                rtol=1e-4,
                atol=1e-3,
            )
        rois = torch.cat(
            [
                rois[:, :1],
                box_head.regress_by_class(
                    rois[:, 1:], logits[:, :-1].argmax(1), deltas, meta
                ),
            ],
            dim=1,
        )
    if cascade:
        with torch.no_grad():
            _, mean, last = head._refine_roi(
                feats, anchor['rois.0'], [meta], (len(rois),)
            )
        torch.testing.assert_close(sum(scores) / 3, mean[0])
        torch.testing.assert_close(outputs[-1].boxes.flatten(1), last[0])


def test_rpn_rows_of_a_two_stage_detector():
    model, batch, _, _, outputs = float_run('faster_rcnn')
    with torch.no_grad():
        scores, deltas = model.rpn_head(model.extract_feat(batch['inputs']))
    logits = torch.cat([s[0].permute(1, 2, 0).flatten() for s in scores])
    boxes = torch.cat([d[0].permute(1, 2, 0).reshape(-1, 4) for d in deltas])
    assert outputs[0].name == 'rpn_head'
    assert torch.equal(outputs[0].logits[:, 0], logits)
    assert torch.equal(outputs[0].boxes, boxes)


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade'])
def test_an_image_without_proposals(name):
    model, batch, _, anchor, _ = float_run(name)
    model, adapter = copy.deepcopy(model), find_adapter(model, mask=True)
    rpn = model.rpn_head.predict
    model.rpn_head.predict = lambda *a, **k: [r[:0] for r in rpn(*a, **k)]
    anchor = adapter.anchor(model, batch)
    outputs = adapter.outputs(model, batch, anchor)
    assert all(len(o.logits) == 0 for o in outputs[1:])
    loss = DetectionLoss(mask=True)
    got = loss(outputs, loss.targets(outputs))
    got.backward()
    assert float(got) == 0


def test_no_more_proposals_than_512(monkeypatch):
    model, batch, adapter, anchor, _ = float_run('faster_rcnn')
    monkeypatch.setattr('mmdet_ptq.detectors.roi.MAX_ROIS', 5)
    few = adapter.anchor(model, batch)['rois.0']
    assert torch.equal(few, anchor['rois.0'][:5])


@pytest.mark.parametrize('name', ['faster_rcnn', 'cascade'])
def test_the_order_of_proposals_does_not_matter(name):
    model, batch, adapter, anchor, outputs = float_run(name)
    other, loss = noisy(model), DetectionLoss(theta_c=0.0)
    order = torch.randperm(len(anchor['rois.0']))
    mixed = {k: v[order] for k, v in anchor.items()}
    with torch.no_grad():
        here = loss(
            adapter.outputs(other, batch, anchor), loss.targets(outputs)
        )
        float_mixed = adapter.outputs(model, batch, mixed)
        there = loss(
            adapter.outputs(other, batch, mixed), loss.targets(float_mixed)
        )
    assert float(here) > 1e-3
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade'])
def test_masks(name, monkeypatch):
    model, batch, plain, anchor, without = float_run(name)
    adapter = find_adapter(model, mask=True)
    wide = adapter.anchor(model, batch)
    assert set(wide) == {*anchor, 'mask_rois', 'mask_labels'}
    with torch.no_grad():
        outputs = adapter.outputs(model, batch, wide)
        same(outputs[: len(without)], without)
        masks = outputs[len(without) :]
        feats = model.extract_feat(batch['inputs'])
    cascade = name == 'cascade'
    assert [m.name for m in masks] == (
        [f'roi_head.mask_head.{k}' for k in range(3)]
        if cascade
        else ['roi_head.mask_head']
    )
    p = probabilities(without[-1])
    assert torch.equal(wide['mask_labels'], p.argmax(1))
    assert torch.equal(wide['mask_rois'], anchor[f'rois.{2 * cascade}'])
    head, rois = model.roi_head, wide['mask_rois']
    with torch.no_grad():
        found = (
            head._mask_forward(1, feats, rois)
            if cascade
            else head._mask_forward(feats, rois)
        )['mask_preds']
    for k, label in enumerate(wide['mask_labels'].tolist()):
        row = masks[int(cascade)].logits[k]
        assert torch.equal(row, found[k, label].flatten())
    # the surest boxes only
    monkeypatch.setattr('mmdet_ptq.detectors.roi.MAX_MASKS', 3)
    rows = p.max(1)[0].topk(3)[1].sort()[0]
    few = adapter.anchor(model, batch)
    assert torch.equal(few['mask_rois'], rois[rows])
    assert plain.mask is False


@pytest.mark.parametrize('name', ['mask_rcnn', 'cascade'])
@torch.no_grad()
def test_without_masks(name):
    """Their heads are not called, and what reads no mask says the same."""
    model, batch, _, _, boxes = float_run(name)
    model, adapter = copy.deepcopy(model), find_adapter(model, mask=True)
    anchor = adapter.anchor(model, batch)
    calls = []
    for part, module in model.named_modules():
        if part.startswith('roi_head.mask_'):
            module.register_forward_hook(lambda *_: calls.append(1))
    with adapter.without_masks():
        found = adapter.outputs(model, batch, anchor)
    assert not calls
    whole = adapter.outputs(model, batch, anchor)
    assert calls and [o.name for o in found] == [o.name for o in whole]
    same(found[: len(boxes)], boxes)
    assert all(o.logits.shape == (0, 0) for o in found[len(boxes) :])
    for loss in (DetectionLoss(theta_c=0.0), PredictionDifference()):
        assert not loss.reads_masks
        targets = loss.targets(whole)
        other = adapter.outputs(noisy(model), batch, anchor)
        with adapter.without_masks():
            less = adapter.outputs(noisy(model), batch, anchor)
        assert float(loss(less, targets)) == float(loss(other, targets)) > 0
    assert DetectionLoss(mask=True).reads_masks


def test_layers_of_masks():
    adapter = find_adapter(detector('mask_rcnn')[0], mask=True)
    parts = {
        'backbone.stages.0': False,
        'neck.fpn_convs.0': False,
        'rpn_head.rpn_conv': False,
        'roi_head.bbox_head.fc_cls': False,
        'roi_head.mask_head.convs.0': True,
        'roi_head.bbox_head.1.fc_reg': False,
        # masks without an extractor of their own use that of boxes
        'roi_head.bbox_roi_extractor.pre_module.conv': True,
        # between boxes and their heads, and masks and theirs
        'roi_head.shared_head.layer4': True,
    }
    assert {name: adapter.of_masks(name) for name in parts} == parts
    dense = find_adapter(detector('retinanet')[0])
    assert not dense.of_masks('bbox_head.cls_convs.0')


class StrangeRoIHead(StandardRoIHead):
    def _bbox_forward(self, x, rois):
        return super()._bbox_forward(x, rois)


def test_an_unknown_roi_head_keeps_the_float_proposals():
    model = copy.deepcopy(detector('faster_rcnn')[0])
    model.roi_head.__class__ = StrangeRoIHead
    with pytest.warns(UserWarning, match='StrangeRoIHead'):
        adapter = find_adapter(model)
    batch, other = prepared('faster_rcnn'), noisy(model)
    anchor = adapter.anchor(model, batch)
    with torch.no_grad():
        found = adapter.outputs(other, batch, anchor)
        feats = other.extract_feat(batch['inputs'])
        rois = float_run('faster_rcnn')[3]['rois.0']
        want = other.roi_head._bbox_forward(feats, rois)
    assert torch.equal(found[0], want['cls_score'])
    assert torch.equal(found[1], want['bbox_pred'])
    assert 'predict' not in vars(other.rpn_head)


def test_an_unknown_rpn_is_left_out_with_a_warning():
    model = copy.deepcopy(detector('faster_rcnn')[0])
    kind = type(model.rpn_head)
    model.rpn_head.__class__ = type(
        'StrangeRPN',
        (kind,),
        dict(predict_by_feat=lambda *a, **k: kind.predict_by_feat(*a, **k)),
    )
    with pytest.warns(UserWarning, match='StrangeRPN'):
        adapter = find_adapter(model)
    batch = prepared('faster_rcnn')
    anchor = adapter.anchor(model, batch)
    with torch.no_grad():
        found = adapter.outputs(model, batch, anchor)
    assert [o.name for o in found] == ['roi_head.bbox_head']
