# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""MMDetection's R50 detectors, surveyed at 800 x 1344 without numbers.

On the device ``meta`` tensors have shapes only, so building and running
takes a second.
"""

from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmdet_ptq.graph import survey
from mmdet_ptq.layers import is_leaf, ports_of
from mmdet_ptq.testing.detectors import config_path

CONFIGS = dict(
    faster='mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    retina='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
)


def look(model, forward):
    """Surveys with the package's own layers."""
    return survey(model, forward, is_leaf=is_leaf, ports=ports_of)


def build(name):
    """A fresh detector on ``meta``."""
    register_all_modules(init_default_scope=True)
    cfg = Config.fromfile(str(config_path(CONFIGS[name]))).model
    cfg.backbone.init_cfg = None
    with torch.device('meta'):
        return MODELS.build(cfg).eval()


def forward(model):
    """One forward; RPN's boxes need numbers, so RoI features are given."""
    image = torch.rand(1, 3, 800, 1344, device='meta')
    if not hasattr(model, 'roi_head'):
        return model(image)
    rois = torch.rand(1000, 256, 7, 7, device='meta')
    levels = model.extract_feat(image)
    return model.rpn_head(levels), model.roi_head.bbox_head(rois)


@pytest.fixture(scope='session')
def kit():
    """Helpers, since test folders are no packages."""
    return SimpleNamespace(look=look, build=build, forward=forward)


@pytest.fixture(scope='session')
def detectors():
    """Name to (float model, survey); do not change them."""
    models = {name: build(name) for name in CONFIGS}
    return {
        name: (model, look(model, lambda model=model: forward(model)))
        for name, model in models.items()
    }
