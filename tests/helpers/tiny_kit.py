# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Small detectors with attention, whose weights are random."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_ptq.testing import random_detector

ROOT = Path(__file__).parents[2]
TINY_DETR = """
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
model = dict(
    num_queries=6,
    test_cfg=dict(max_per_img=6),
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[64], out_channels=16),
    encoder=dict(
        num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=16, num_heads=2),
            ffn_cfg=dict(embed_dims=16, feedforward_channels=32),
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=16, num_heads=2),
            cross_attn_cfg=dict(embed_dims=16, num_heads=2),
            ffn_cfg=dict(embed_dims=16, feedforward_channels=32),
        ),
    ),
    positional_encoding=dict(num_feats=8),
    bbox_head=dict(num_classes=3, embed_dims=16),
)
"""


def tiny_detr(folder):
    """A DETR of one encoder and two decoder layers, on a ResNet."""
    init_default_scope('mmdet')
    path = folder / 'detr.py'
    path.write_text(TINY_DETR)
    return random_detector(path)


def tiny_swin(folder):
    """A small Mask R-CNN with a Swin of four blocks."""
    cfg = Config.fromfile(
        str(ROOT / 'configs/digits/mask-rcnn_swin_digits.py')
    )
    model = cfg.model
    model.backbone.update(
        embed_dims=16, depths=[2, 1, 1, 1], num_heads=[1, 2, 2, 2]
    )
    model.neck.update(in_channels=[16, 32, 64, 128])
    model.test_cfg.rpn.update(nms_pre=20, max_per_img=8)
    path = folder / 'tiny.py'
    Config(dict(model=model)).dump(path)
    return random_detector(path)


def predictions(model, batches):
    """Boxes, scores and labels of all images."""
    found = []
    for batch in batches:
        for sample in model.test_step(batch):
            one = sample.pred_instances
            found += [one.bboxes, one.scores, one.labels]
    return found
