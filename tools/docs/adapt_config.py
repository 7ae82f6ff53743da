# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Makes a config that MMDetection ships run on a tiny data set."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS
from mmengine.config import Config

from mmdet_ptq.testing.detectors import without_pretrained
from tools.docs.tiny_coco import (
    ANNOTATIONS,
    IMAGES,
    PROPOSALS,
    make_tiny_coco,
)

#: of results that a metric of COCO does not take: panoptic segments, and
#: labels of a float type
_NO_METRIC = {'CocoPanopticMetric', 'CrowdHumanMetric'}


def adapt(cfg: Config, data: Path, size: tuple[int, int]) -> list[str]:
    """Makes a config run on a tiny data set, which is written.

    Args:
        cfg (Config): A detector's config; changed in place.
        data (Path): Where the data set goes.
        size (tuple[int, int]): Height and width of the images in pixels.

    Returns:
        list[str]: What the config's own was replaced by.

    Raises:
        KeyError: If the config says nothing of test data.
    """
    if cfg.get('test_dataloader') is None:
        raise KeyError('the config has no test_dataloader')
    notes = []
    without_pretrained(cfg.model)
    classes = declared_classes(next(leaves(cfg.test_dataloader.dataset)))
    if classes is None:
        count = num_classes(cfg.model)
        classes = tuple(f'class {i}' for i in range(count))
        notes.append('classes by the head')
    make_tiny_coco(data, classes, size)
    for key in ('train_dataloader', 'test_dataloader'):
        for leaf in leaves(cfg[key].dataset) if cfg.get(key) else ():
            notes += point(leaf, data, classes)
    loader = cfg.test_dataloader
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    for owner in (loader.dataset, *leaves(loader.dataset)):
        for step in steps(owner.get('pipeline') or []):
            notes += shrink(step, size)
    given = cfg.test_evaluator
    cfg.test_evaluator = evaluators(
        given if isinstance(given, list) else [given], data, notes
    )
    return list(dict.fromkeys(notes))


def leaves(dataset: dict) -> Iterator[dict]:
    """The datasets inside wrappers.

    Args:
        dataset (dict): The config of one.

    Yields:
        dict: Configs, to be changed in place.
    """
    if dataset.get('dataset') is not None:
        yield from leaves(dataset['dataset'])
    elif dataset.get('datasets') is not None:
        for one in dataset['datasets']:
            yield from leaves(one)
    else:
        yield dataset


def declared_classes(leaf: dict) -> tuple[str, ...] | None:
    """Classes that a dataset declares, by its config or its type.

    Args:
        leaf (dict): Its config.

    Returns:
        tuple[str, ...] | None: None if only its files say them.
    """
    kind = DATASETS.get(leaf['type'])
    known = {**kind.METAINFO, **(leaf.get('metainfo') or {})}
    classes = known.get('classes')
    if classes is None or isinstance(classes, str):
        return None
    return tuple(classes)


def num_classes(model: Any) -> int:
    """The first ``num_classes`` of a model's config.

    Args:
        model (Any): A model config or a part of one.

    Returns:
        int: 0 if there is none.
    """
    if isinstance(model, list | tuple):
        return next(filter(None, map(num_classes, model)), 0)
    if not isinstance(model, dict):
        return 0
    found = model.get('num_classes')
    return found or num_classes(list(model.values()))


def point(leaf: dict, data: Path, classes: tuple[str, ...]) -> list[str]:
    """Points a dataset to the tiny one.

    Args:
        leaf (dict): Its config; changed in place.
        data (Path): Where the tiny data set is.
        classes (tuple[str, ...]): Its classes.

    Returns:
        list[str]: The type that stands for one that cannot read it.
    """
    for key in ('indices', 'label_file', 'hierarchy_file', 'meta_file'):
        leaf.pop(key, None)
    if leaf.get('proposal_file') is not None:
        leaf['proposal_file'] = PROPOSALS
    leaf.update(
        data_root=f'{data}/',
        ann_file=ANNOTATIONS,
        data_prefix=dict(img=IMAGES),
    )
    if declared_classes(leaf) is not None and _reads(leaf):
        return []
    name = leaf['type']
    kept = ('data_root', 'ann_file', 'data_prefix', 'pipeline', 'test_mode')
    kept += ('backend_args', 'proposal_file')
    plain = {k: v for k, v in leaf.items() if k in kept}
    leaf.clear()
    leaf.update(plain, type='CocoDataset', metainfo=dict(classes=classes))
    return [f'CocoDataset for {name}']


def _reads(leaf: dict) -> bool:
    """Whether a dataset of this config finds the annotated images."""
    cfg = copy.deepcopy(dict(leaf, pipeline=[], test_mode=True))
    try:
        dataset = DATASETS.build(cfg)
        return len(dataset.get_data_info(0)['instances']) > 0
    except Exception:
        # a type of another format fails in its own way; what stands for it
        # is told in the row
        return False


def steps(pipeline: list) -> Iterator[dict]:
    """The transforms of a pipeline, those inside others too.

    Args:
        pipeline (list): Configs of transforms.

    Yields:
        dict: Configs, to be changed in place.
    """
    for step in pipeline:
        yield step
        yield from steps(step.get('transforms') or [])


def shrink(step: dict, size: tuple[int, int]) -> list[str]:
    """Makes a transform give small images and load what there is.

    Args:
        step (dict): Its config; changed in place.
        size (tuple[int, int]): Height and width in pixels.

    Returns:
        list[str]: The type that stands for one that cannot load it.
    """
    height, width = size
    if 'scale' in step:
        step['scale'] = (width, height)
    if step.get('size') is not None:
        step['size'] = (width, height)
    if step['type'] != 'LoadPanopticAnnotations':
        return []
    step.clear()
    step.update(type='LoadAnnotations', with_bbox=True)
    return ['LoadAnnotations for LoadPanopticAnnotations']


def evaluators(given: list, data: Path, notes: list[str]) -> list[dict]:
    """The metrics of COCO that a config names, else a plain one.

    Args:
        given (list): Configs of its metrics.
        data (Path): Where the tiny data set is.
        notes (list[str]): Told what was replaced.

    Returns:
        list[dict]: Configs; none where :data:`_NO_METRIC` is named.
    """
    ann_file = str(data / ANNOTATIONS)
    kept = [
        dict(m, ann_file=ann_file, format_only=False, outfile_prefix=None)
        for m in given
        if m['type'] == 'CocoMetric'
    ]
    others = [m['type'] for m in given if m['type'] != 'CocoMetric']
    if kept:
        notes += [f'without {name}' for name in others]
        return kept
    if _NO_METRIC.intersection(others):
        notes += [f'no metric for {name}' for name in others]
        return []
    notes += [f'CocoMetric for {name}' for name in others]
    return [dict(type='CocoMetric', metric='bbox', ann_file=ann_file)]
