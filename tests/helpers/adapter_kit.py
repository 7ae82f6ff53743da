# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A small detector of every family, run in float."""

import copy
import functools
import tempfile
from pathlib import Path

import torch

from mmdet_ptq.detectors import (
    DenseAdapter,
    GFLAdapter,
    QueryAdapter,
    RoIAdapter,
    YOLOXAdapter,
    find_adapter,
)
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


QUERY = [
    name for name, family in FAMILIES.items() if family[3] is QueryAdapter
]


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
