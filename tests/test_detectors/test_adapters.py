# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Raw outputs of every family, against MMDetection's own post-processing."""

import copy
import functools
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmdet.models.roi_heads import StandardRoIHead
from mmengine.config import Config

from mmdet_ptq.detectors import (
    Adapter,
    DenseAdapter,
    GFLAdapter,
    QueryAdapter,
    RawAdapter,
    RoIAdapter,
    YOLOXAdapter,
    find_adapter,
)
from mmdet_ptq.losses import DetectionLoss
from mmdet_ptq.registry import ADAPTERS
from mmdet_ptq.structures import DetectionOutputs
from mmdet_ptq.testing import noise_batches, random_detector

DIGITS = Path(__file__).parents[2] / 'configs' / 'digits'
SLIM = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
SLIM_C5 = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    neck=dict(in_channels=[512]),
    num_queries=12,
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
)
SLIM_DEFORMABLE = dict(
    SLIM_C5, neck=dict(in_channels=[128, 256, 512]), num_queries=12
)
FCOS = 'mmdet::fcos/fcos_r50-caffe_fpn_gn-head'
DEFORMABLE = 'mmdet::deformable_detr/deformable-detr'

#: config, what is changed in it, image size, adapter
FAMILIES = {
    'retinanet': ('retinanet_digits', {}, 96, DenseAdapter),
    'yolof': ('yolof_digits', {}, 96, DenseAdapter),
    'rpn': ('mmdet::rpn/rpn_r50_fpn_1x_coco', SLIM, 64, DenseAdapter),
    'fcos': (f'{FCOS}_1x_coco', SLIM, 64, DenseAdapter),
    'fcos_norm': (
        f'{FCOS}-center-normbbox-centeronreg-giou_1x_coco',
        SLIM,
        64,
        DenseAdapter,
    ),
    'atss': ('mmdet::atss/atss_r50_fpn_1x_coco', SLIM, 64, DenseAdapter),
    'rtmdet': (
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco',
        {},
        64,
        DenseAdapter,
    ),
    'ssd': (
        'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco',
        {},
        64,
        DenseAdapter,
    ),
    'gfl': ('mmdet::gfl/gfl_r50_fpn_1x_coco', SLIM, 64, GFLAdapter),
    'yolox': ('mmdet::yolox/yolox_tiny_8xb8-300e_coco', {}, 64, YOLOXAdapter),
    'faster_rcnn': ('faster-rcnn_digits', {}, 96, RoIAdapter),
    'mask_rcnn': ('mask-rcnn_swin_digits', {}, 64, RoIAdapter),
    'cascade': ('cascade-mask-rcnn_swin_digits', {}, 64, RoIAdapter),
    'detr': ('detr_digits', {}, 96, QueryAdapter),
    'detr_softmax': (
        'mmdet::detr/detr_r50_8xb2-150e_coco',
        SLIM_C5,
        64,
        QueryAdapter,
    ),
    'conditional_detr': (
        'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco',
        SLIM_C5,
        64,
        QueryAdapter,
    ),
    'dab_detr': (
        'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco',
        SLIM_C5,
        64,
        QueryAdapter,
    ),
    'deformable': (
        f'{DEFORMABLE}_r50_16xb2-50e_coco',
        SLIM_DEFORMABLE,
        64,
        QueryAdapter,
    ),
    'deformable_two_stage': (
        f'{DEFORMABLE}-refine-twostage_r50_16xb2-50e_coco',
        SLIM_DEFORMABLE,
        64,
        QueryAdapter,
    ),
    'dino': (
        'mmdet::dino/dino-4scale_r50_8xb2-12e_coco',
        SLIM_DEFORMABLE,
        64,
        QueryAdapter,
    ),
}
DENSE = [
    name
    for name, family in FAMILIES.items()
    if issubclass(family[3], DenseAdapter)
]
QUERY = [
    name for name, family in FAMILIES.items() if family[3] is QueryAdapter
]
ROI = ['faster_rcnn', 'mask_rcnn', 'cascade']
SELECTING = ['deformable_two_stage', 'dino']
every = pytest.mark.parametrize('name', FAMILIES)


@functools.cache
def detector(name):
    """A random detector and the size of its images; not to be changed."""
    config, changes, size, _ = FAMILIES[name]
    if config.startswith('mmdet::'):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'config.py'
            text = f'_base_ = {config + ".py"!r}\nmodel = {changes!r}\n'
            path.write_text(text)
            model = random_detector(path)
    else:
        model = random_detector(DIGITS / f'{config}.py')
    if hasattr(model, 'rpn_head'):
        model.rpn_head.test_cfg.update(nms_pre=40, max_per_img=12)
    # predictions that differ from row to row
    torch.manual_seed(3)
    if hasattr(model, 'level_embed'):
        # left as the memory was, until init_weights
        torch.nn.init.normal_(model.level_embed)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if 'head' in key and value.dim() > 1:
                value.mul_(1.5)
            if 'scales' in key:
                value.mul_(1.2)
    return model, size


@functools.cache
def prepared(name, count=1):
    model, size = detector(name)
    data = noise_batches(count, (size, size))
    data = {k: [x for d in data for x in d[k]] for k in data[0]}
    return model.data_preprocessor(data, False)


@functools.cache
def float_run(name):
    """Model, batch, adapter, anchor and outputs without gradient."""
    model, batch = detector(name)[0], prepared(name)
    adapter = find_adapter(model)
    anchor = adapter.anchor(model, batch)
    with torch.no_grad():
        outputs = adapter.outputs(model, batch, anchor)
    return model, batch, adapter, anchor, outputs


def noisy(model):
    """A copy as a quantized one might be."""
    model = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.add_(torch.randn_like(value) * value.std() * 0.05)
    return model


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.name == y.name
        assert torch.equal(x.logits, y.logits)
        assert (x.boxes is None) == (y.boxes is None)
        if x.boxes is not None:
            assert torch.equal(x.boxes, y.boxes)


def probabilities(output):
    if output.activation == 'sigmoid':
        return output.logits.sigmoid()
    assert output.background == output.logits.shape[1] - 1
    return output.logits.softmax(1)[:, :-1]


def corners(output):
    rows = torch.arange(len(output.logits))
    return output.decode(output.boxes, rows)


def assert_same_detections(scores, labels, boxes, output, size, top=None):
    """(score, class, box) of MMDetection equal those of aligned rows.

    Sets of equal size are compared by sorted projections on random
    directions, so that nothing depends on an order.
    """
    p = probabilities(output)
    row, label = (
        x.flatten()
        for x in torch.meshgrid(
            torch.arange(p.shape[0]), torch.arange(p.shape[1]), indexing='ij'
        )
    )
    ours = torch.cat(
        [
            p.flatten()[:, None],
            label[:, None].float(),
            corners(output)[row].clamp(0, size) / size,
        ],
        dim=1,
    )
    if top is not None:
        ours = ours[ours[:, 0].topk(top)[1]]
    theirs = torch.cat(
        [scores[:, None], labels[:, None].float(), boxes / size], 1
    )
    assert ours.shape == theirs.shape
    torch.manual_seed(0)
    for direction in torch.randn(6, 4 + 2):
        torch.testing.assert_close(
            (ours @ direction).sort()[0],
            (theirs @ direction).sort()[0],
            rtol=1e-4,
            atol=1e-4,
        )


@every
def test_the_class_of_the_head_decides(name):
    model = detector(name)[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        adapter = find_adapter(model)
    assert type(adapter) is FAMILIES[name][3]


@every
def test_outputs_keep_the_contract_and_repeat(name):
    model, batch, adapter, anchor, outputs = float_run(name)
    assert all(type(v) is torch.Tensor for v in anchor.values())
    assert not any(v.requires_grad for v in anchor.values())
    with torch.no_grad():
        same(adapter.outputs(model, batch, anchor), outputs)
    again = adapter.anchor(model, batch)
    assert again.keys() == anchor.keys()
    assert all(torch.equal(again[k], anchor[k]) for k in anchor)
    for output in outputs:
        n = len(output.logits)
        assert isinstance(output, DetectionOutputs) and n > 0
        assert output.logits.dtype == output.boxes.dtype == torch.float32
        assert output.logits.isfinite().all()
        assert output.boxes.shape[0] == n and output.boxes.shape[-1] == 4
        assert output.levels is None or output.levels.shape == (n,)
        assert (output.background is None) == (output.activation == 'sigmoid')
        rows = torch.tensor([n - 1, 0, n // 2])
        picked = output.boxes[rows]
        if picked.dim() == 3:
            picked = picked[:, 0]
        found = output.decode(picked, rows)
        assert found.shape == (3, 4) and found.isfinite().all()
        # this RTMDet regresses distances that may be negative
        assert name == 'rtmdet' or (found[:, 2:] >= found[:, :2]).all()


@every
def test_gradients_reach_backbone_and_every_prediction_layer(name):
    model, batch, _, anchor, _ = float_run(name)
    model, adapter = copy.deepcopy(model), find_adapter(model)
    outputs = adapter.outputs(model, batch, anchor)
    sum(
        o.logits.tanh().sum() + o.boxes.tanh().mul(0.7).sum() for o in outputs
    ).backward()
    # the deepest weight of the backbone (DETR freezes the rest)
    weights = [p for p in model.backbone.parameters() if p.requires_grad]
    assert any(bool(p.grad is not None and p.grad.any()) for p in weights[-6:])
    untouched = {
        key
        for key, p in model.named_parameters()
        if 'head' in key
        and key.endswith('weight')
        and 'mask_head' not in key
        and (p.grad is None or not p.grad.any())
    }
    # branches that only the encoder's or earlier layers' outputs pass
    assert all('branches' in key for key in untouched), untouched
    if name in QUERY and untouched:
        last = {'bbox_head.cls_branches.1.weight'}
        assert not untouched & last


@pytest.mark.parametrize('name', DENSE)
def test_dense_rows_are_what_mmdet_reads(name):
    model, batch, _, _, (output,) = float_run(name)
    head, size = model.bbox_head, detector(name)[1]
    cfg = Config(dict(score_thr=-1.0, nms_pre=10**6, min_bbox_size=-1))
    metas = [s.metainfo for s in batch['data_samples']]
    read = {}
    if name == 'ssd':
        # MMDetection 3.3 asks SSDHead for a loss_cls that it does not have
        head.loss_cls = None
    # RPN and YOLOX do not let one leave out NMS: look at what goes in
    head._bbox_post_process = lambda results, **_: read.update(
        scores=results.scores * results.get('score_factors', 1),
        boxes=results.bboxes,
        labels=results.get('labels', None),
    )
    try:
        with torch.no_grad():
            outs = head(model.extract_feat(batch['inputs']))
            head.predict_by_feat(*outs, batch_img_metas=metas, cfg=cfg)
    finally:
        del head._bbox_post_process
    labels = read['labels']
    if labels is None:
        labels = torch.zeros(len(read['scores']))
    if name == 'yolox':
        # gives the likeliest class only
        p = probabilities(output)
        torch.testing.assert_close(p.max(1)[0], read['scores'])
        chosen = p.gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(chosen, p.max(1)[0])
        torch.testing.assert_close(corners(output), read['boxes'])
    else:
        boxes = read['boxes'].clamp(0, size)
        assert_same_detections(read['scores'], labels, boxes, output, size)


@pytest.mark.parametrize('name', ['fcos', 'fcos_norm', 'rtmdet'])
def test_distances_are_in_strides(name):
    model, batch, _, _, (output,) = float_run(name)
    with torch.no_grad():
        maps = model.bbox_head(model.extract_feat(batch['inputs']))[1]
    for level, stride in enumerate(model.bbox_head.prior_generator.strides):
        found = output.boxes[output.levels == level] * stride[0]
        wanted = maps[level][0].permute(1, 2, 0).reshape(-1, 4)
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize('name', ['retinanet', 'yolof'])
def test_dense_rows_by_a_plain_loop(name):
    model, batch, _, _, (output,) = float_run(name)
    head = model.bbox_head
    with torch.no_grad():
        scores, deltas = head(model.extract_feat(batch['inputs']))
    classes, k = head.cls_out_channels, 0
    for level, (score, delta) in enumerate(zip(scores, deltas, strict=True)):
        anchors = head.prior_generator.single_level_grid_priors(
            score.shape[-2:], level, device='cpu'
        )
        per_cell = score.shape[1] // classes
        height, width = score.shape[-2:]
        first = k
        for y in range(height):
            for x in range(width):
                for a in range(per_cell):
                    want = score[0, a * classes : (a + 1) * classes, y, x]
                    assert torch.equal(output.logits[k], want)
                    want = delta[0, a * 4 : a * 4 + 4, y, x]
                    assert torch.equal(output.boxes[k], want)
                    assert output.levels[k] == level
                    k += 1
        rows = torch.arange(first, k)
        torch.testing.assert_close(
            output.decode(output.boxes[rows], rows),
            head.bbox_coder.decode(anchors, output.boxes[rows]),
        )
    assert k == len(output.logits)


def test_decoding_does_not_clamp_to_the_image():
    _, _, _, _, (output,) = float_run('retinanet')
    assert (corners(output) < 0).any()


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


def test_decoding_uses_width_and_height():
    adapter = find_adapter(detector('detr')[0])
    batch = copy.deepcopy(prepared('detr'))
    batch['data_samples'][0].set_metainfo(dict(img_shape=(50, 96)))
    with torch.no_grad():
        (output,) = adapter.outputs(detector('detr')[0], batch, {})
    found = output.decode(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), None)
    assert found.tolist() == [[0, 0, 96, 50]]


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


@pytest.mark.parametrize(
    'name', ['retinanet', 'faster_rcnn', 'cascade', 'detr', 'dino']
)
def test_two_images_are_two_single_ones(name):
    model, adapter = detector(name)[0], find_adapter(detector(name)[0], True)
    both = prepared(name, 2)
    with torch.no_grad():
        found = adapter.outputs(model, both, adapter.anchor(model, both))
        for i in range(2):
            one = dict(
                inputs=both['inputs'][i : i + 1],
                data_samples=both['data_samples'][i : i + 1],
            )
            single = adapter.outputs(model, one, adapter.anchor(model, one))
            for a, b in zip(found[i::2], single, strict=True):
                assert a.name == b.name
                torch.testing.assert_close(
                    a.logits, b.logits, rtol=1e-3, atol=1e-3
                )
                if b.boxes is not None:
                    rows = torch.arange(len(b.boxes))
                    x, y = a.boxes, b.boxes
                    if x.dim() == 3:
                        x, y = x[:, 0], y[:, 0]
                    torch.testing.assert_close(
                        a.decode(x, rows),
                        b.decode(y, rows),
                        rtol=1e-3,
                        atol=0.05,
                    )


@pytest.mark.parametrize('name', ['retinanet', 'faster_rcnn', 'dino'])
def test_cached_features_can_be_replayed(name):
    model, batch, adapter, anchor, outputs = float_run(name)
    with torch.no_grad():
        feats = model.backbone(batch['inputs'])
    calls = []
    model.backbone.forward = lambda x: calls.append(1) or feats
    try:
        with torch.no_grad():
            same(adapter.outputs(model, batch, anchor), outputs)
    finally:
        del model.backbone.forward
    assert calls == [1]


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


class StrangeRetinaHead(RetinaHead):
    """Its outputs mean something else, as an override tells."""

    def predict_by_feat(self, *args, **kwargs):
        raise NotImplementedError


class StrangeRoIHead(StandardRoIHead):
    def _bbox_forward(self, x, rois):
        return super()._bbox_forward(x, rois)


class SameRetinaHead(RetinaHead):
    """Other layers, outputs of the same meaning."""

    def forward_single(self, x):
        return super().forward_single(x)


def test_an_unknown_head_falls_back_with_a_warning():
    model = copy.deepcopy(detector('retinanet')[0])
    model.bbox_head.__class__ = StrangeRetinaHead
    with pytest.warns(UserWarning, match=r'StrangeRetinaHead.*L2') as said:
        adapter = find_adapter(model)
    assert len(said) == 1
    assert type(adapter) is RawAdapter
    batch = prepared('retinanet')
    anchor = adapter.anchor(model, batch)
    assert anchor == {}
    found = adapter.outputs(model, batch, anchor)
    scores, deltas = model.bbox_head(model.extract_feat(batch['inputs']))
    want = [*scores, *deltas]
    assert len(found) == len(want)
    for a, b in zip(found, want, strict=True):
        assert torch.equal(a, b) and a.requires_grad
    model.bbox_head.__class__ = SameRetinaHead
    assert type(find_adapter(model)) is DenseAdapter


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


def test_a_head_without_any_name_falls_back():
    with pytest.warns(UserWarning, match='Linear'):
        assert type(find_adapter(torch.nn.Linear(2, 2))) is RawAdapter


def test_adapters_of_users_come_first():
    model = copy.deepcopy(detector('retinanet')[0])
    model.bbox_head.__class__ = StrangeRetinaHead

    class Silent(Adapter):
        def outputs(self, model, batch, anchor):
            return []

    class Mine(Silent):
        heads = (StrangeRetinaHead,)

    class MineForAll(Silent):
        heads = (RetinaHead,)

    class MineAfter(MineForAll):
        pass

    for cls in (Mine, MineForAll, MineAfter):
        ADAPTERS.register_module(module=cls)
    try:
        assert type(find_adapter(model)) is Mine
        assert type(find_adapter(detector('retinanet')[0])) is MineAfter
        assert type(find_adapter(detector('atss')[0])) is DenseAdapter
    finally:
        for cls in (Mine, MineForAll, MineAfter):
            del ADAPTERS.module_dict[cls.__name__]
