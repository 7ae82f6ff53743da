# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors as a training starts them, nothing downloaded."""

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdet_ptq.engine.untrained import (
    config_path,
    untrained,
    without_pretrained,
)
from mmdet_ptq.errors import PTQError


def test_configs_lose_what_needs_a_network_or_a_process_group():
    cfg = dict(
        init_cfg=dict(checkpoint='https://x'),  # PVT: no type
        pretrained='x',
        norm_cfg=[dict(type='MMSyncBN', requires_grad=True)],
        neck=dict(init_cfg=dict(type='Normal')),
    )
    assert without_pretrained(cfg) == dict(
        init_cfg=None,
        pretrained=None,
        norm_cfg=[dict(type='BN', requires_grad=True)],
        neck=dict(init_cfg=dict(type='Normal')),
    )


def test_backbones_of_timm_download_nothing():
    cfg = dict(backbone=dict(type='TIMMBackbone', pretrained=True))
    assert without_pretrained(cfg)['backbone']['pretrained'] is False


def test_the_same_weights_again(tiny):
    cfg = Config.fromfile(str(tiny.config['retinanet']))
    before = cfg.to_dict()
    first, second = (untrained(cfg).state_dict() for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)
    assert cfg.to_dict() == before


def test_a_detector_that_distils():
    """Its ``eval`` returns None; its teacher is no file."""
    path = config_path('mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py')
    model = untrained(Config.fromfile(str(path)))
    assert isinstance(model, nn.Module) and not model.training


def test_what_cannot_be_built_is_said(tiny):
    cfg = Config.fromfile(str(tiny.config['retinanet']))
    cfg.model.neck.type = 'NoSuchNeck'
    with pytest.raises(PTQError, match=r'cannot be built: .*NoSuchNeck'):
        untrained(cfg)
