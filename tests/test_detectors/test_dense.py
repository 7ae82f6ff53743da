# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rows of one-stage heads, beside those that MMDetection reads."""

import copy
import gc
import weakref

import pytest
import torch
from adapter_kit import (
    FAMILIES,
    assert_same_detections,
    corners,
    detector,
    float_run,
    prepared,
    probabilities,
)
from crossings import crossings
from mmengine.config import Config

from mmdet_ptq.detectors import DenseAdapter, find_adapter

DENSE = [
    name
    for name, family in FAMILIES.items()
    if issubclass(family[3], DenseAdapter)
]


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


def test_decoding_uses_width_and_height():
    adapter = find_adapter(detector('detr')[0])
    batch = copy.deepcopy(prepared('detr'))
    batch['data_samples'][0].set_metainfo(dict(img_shape=(50, 96)))
    with torch.no_grad():
        (output,) = adapter.outputs(detector('detr')[0], batch, {})
    found = output.decode(torch.tensor([[0.5, 0.5, 1.0, 1.0]]), None)
    assert found.tolist() == [[0, 0, 96, 50]]


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'gfl', 'yolox'])
def test_priors_are_made_once(name):
    """MMDetection makes them on the CPU; they depend on the sizes alone."""
    model, batch, *_ = float_run(name)
    adapter = find_adapter(model)
    with torch.no_grad():
        feats = model.extract_feat(batch['inputs'])
        first = adapter.read(model.bbox_head, 'bbox_head', feats)[0]
        with crossings() as own:
            model.bbox_head(feats)
        with crossings() as found:
            second = adapter.read(model.bbox_head, 'bbox_head', feats)[0]
        assert found == own
        # maps of another size have others
        wide = [f.repeat(1, 1, 1, 2) for f in feats]
        other = adapter.read(model.bbox_head, 'bbox_head', wide)[0]
    assert torch.equal(first.boxes, second.boxes)
    assert torch.equal(first.levels, second.levels)
    assert len(other.levels) == 2 * len(first.levels)
    new = find_adapter(model).read(model.bbox_head, 'bbox_head', wide)[0]
    assert torch.equal(new.boxes, other.boxes)


def test_a_head_is_not_kept_alive():
    adapter, model = DenseAdapter(), copy.deepcopy(float_run('retinanet')[0])
    head = weakref.ref(model.bbox_head)
    with torch.no_grad():
        feats = model.extract_feat(torch.zeros(1, 3, 64, 64))
        adapter.read(model.bbox_head, 'bbox_head', feats)
    del model
    gc.collect()
    assert head() is None
