# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Classes of a model and of its test data."""

import pytest
from log_kit import logged
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from torch import nn

from mmdet_ptq.engine.dataset import check_classes, dataset_meta
from mmdet_ptq.errors import QuantConfigError


def detector(count, **parts):
    model = nn.Module()
    model.bbox_head = nn.Linear(1, 1)
    model.bbox_head.num_classes = count
    for name, part in parts.items():
        model.add_module(name, part)
    return model


def data(count):
    return dict(classes=tuple(map(str, range(count))))


def test_another_count_is_refused():
    check_classes(detector(5), data(5))
    with pytest.raises(QuantConfigError, match=r'3 classes.*num_classes=5'):
        check_classes(detector(5), data(3))


def test_things_and_stuff():
    """As Panoptic FPN has them on COCO: 80 things, 53 kinds of stuff."""
    register_all_modules()
    cfg = dict(
        type='HeuristicFusionHead', num_things_classes=80, num_stuff_classes=53
    )
    model = detector(80, panoptic_fusion_head=MODELS.build(cfg))
    check_classes(model, data(133))
    check_classes(model, data(80))
    with pytest.raises(
        QuantConfigError, match=r'stuff of panoptic_fusion_head=133'
    ):
        check_classes(model, data(53))


def test_classes_of_a_prompt_are_not_counted():
    """As in GLIP and Grounding DINO."""
    with logged() as said:
        check_classes(detector(80, language_model=nn.Identity()), data(3))
    assert 'has 3 classes' in said.text
    assert 'come from its prompt' in said.text


def test_names_of_mmdetection_2():
    """Its keys stood in the meta itself, in upper case."""
    old = dict(meta=dict(CLASSES=('a',), PALETTE=[(1, 2, 3)], epoch=3))
    assert dataset_meta(old, data(5)) == dict(
        classes=('a',), palette=[(1, 2, 3)]
    )
    mixed = dict(meta=dict(dataset_meta=dict(CLASSES=('b',), extra=1)))
    assert dataset_meta(mixed, {}) == dict(classes=('b',), extra=1)
    for nothing in ({}, dict(meta=None), dict(meta=dict(epoch=1))):
        assert dataset_meta(nothing, data(1)) == dict(classes=('0',))
