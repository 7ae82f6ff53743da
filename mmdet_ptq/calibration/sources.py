# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where calibration images come from: datasets of the config, or a folder.

All go through the detector's own test pipeline.
"""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import print_log

from ..errors import CalibrationError
from ..quant_cfg import Calibration
from .data import CalibrationImages

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')


def from_config(
    cfg: Config, calibration: Calibration, annotated: bool = False
) -> CalibrationImages:
    """Builds the calibration images that a config and its options name.

    Args:
        cfg (Config): A full MMDetection config.
        calibration (Calibration): Source, number and seed.
        annotated (bool): Whether samples bring their objects along, as an
            evaluator wants them. Defaults to False.

    Returns:
        CalibrationImages: Chosen by the seed, in the chosen order, which
        does not depend on ``num_samples``.

    Raises:
        CalibrationError: If the source does not exist, is empty, or has no
            objects that are asked for.
    """
    pipeline = _inference_pipeline(cfg, annotated)
    if calibration.source in ('train', 'test'):
        key = f'{calibration.source}_dataloader'
        if cfg.get(key) is None:
            raise CalibrationError(
                f'the config has no {key}; use --calib-source with '
                '"train", "test" or a folder of images'
            )
        where = f'{key}.dataset'
        leaves = [
            {**_asked(cfg), **leaf}
            for leaf in _leaf_datasets(cfg[key].dataset, where)
        ]
        source: _Datasets | _Folder = _Datasets(leaves, pipeline)
    else:
        where = calibration.source
        if annotated:
            raise CalibrationError(
                f'the images of the folder {where} have no objects to test '
                "on; take calibration.source='train' (--calib-source train)"
            )
        source = _Folder(where, pipeline)
    indices = choose(
        len(source.names), calibration.num_samples, calibration.seed, where
    )
    return CalibrationImages(source, source.names, indices)


def choose(total: int, wanted: int, seed: int, where: str) -> list[int]:
    """A seeded choice of distinct images.

    Args:
        total (int): How many there are.
        wanted (int): How many are asked for.
        seed (int): Seed of the choice.
        where (str): What they come from, for messages.

    Returns:
        list[int]: ``min(total, wanted)`` distinct indices.

    Raises:
        CalibrationError: If there are none.
    """
    if total == 0:
        raise CalibrationError(
            f'the calibration set is empty: {where} holds no image'
        )
    if total < wanted:
        print_log(
            f'{wanted} calibration images asked for, {where} holds only '
            f'{total}: going on with these',
            'current',
            logging.WARNING,
        )
    order = np.random.default_rng(seed).permutation(total)
    return [int(i) for i in order[:wanted]]


def _test_dataset(cfg: Config, key: str) -> dict:
    dataset = cfg.test_dataloader.dataset
    if key in dataset:
        return dataset
    return _leaf_datasets(dataset, 'test_dataloader.dataset')[0]


def _asked(cfg: Config) -> dict:
    """What makes a test dataset give text, for detectors that need it."""
    keys = ('return_classes', 'caption_prompt')
    dataset = _test_dataset(cfg, keys[0])
    return {key: dataset[key] for key in keys if key in dataset}


def _inference_pipeline(cfg: Config, annotated: bool) -> list[dict]:
    dataset = _test_dataset(cfg, 'pipeline')
    transforms: list = []
    for t in copy.deepcopy(list(dataset.pipeline)):
        if 'TestTimeAug' in str(t['type']):
            # calibration has one view of an image, the first
            transforms += [choices[0] for choices in t['transforms']]
        else:
            transforms.append(t)
    if annotated:
        return [_with_objects(t) for t in transforms]
    return [t for t in transforms if 'Annotations' not in str(t['type'])]


def _with_objects(transform: dict) -> dict:
    """A packing transform keeps the objects as the dataset gives them."""
    if str(transform['type']) != 'PackDetInputs':
        return transform
    from mmdet.datasets.transforms import PackDetInputs

    keys = transform.get('meta_keys', PackDetInputs().meta_keys)
    return dict(transform, meta_keys=(*keys, 'instances'))


def _leaf_datasets(dataset: Any, where: str) -> list[Any]:
    """Datasets inside wrappers such as RepeatDataset or ConcatDataset."""
    if not isinstance(dataset, dict) or not dataset:
        raise CalibrationError(
            f'{where} must be the config of a dataset, got a '
            f'{type(dataset).__name__}; several datasets go into a '
            "ConcatDataset: dict(type='ConcatDataset', datasets=[...])"
        )
    if dataset.get('dataset') is not None:
        return _leaf_datasets(dataset['dataset'], f'{where}.dataset')
    several = dataset.get('datasets')
    if several is None:
        return [dataset]
    if not isinstance(several, list | tuple):
        raise CalibrationError(
            f'{where}.datasets must be a list of configs, got a '
            f'{type(several).__name__}'
        )
    return [
        leaf
        for i, one in enumerate(several)
        for leaf in _leaf_datasets(one, f'{where}.datasets[{i}]')
    ]


class _Datasets:
    """MMDetection datasets, end to end, read by the test pipeline."""

    def __init__(self, cfgs: list[Any], pipeline: list[dict]) -> None:
        from mmdet.registry import DATASETS

        self.parts = []
        for cfg in cfgs:
            cfg = copy.deepcopy(cfg)
            cfg['pipeline'] = pipeline
            cfg['test_mode'] = True
            # unused in test mode, and XML datasets then refuse parts of it
            cfg.pop('filter_cfg', None)
            try:
                self.parts.append(DATASETS.build(cfg))
            except (OSError, ValueError) as error:
                # what a dataset of MMDetection says when it has no image
                if 'at least one array' in str(error):
                    raise CalibrationError(
                        'the calibration set is empty: '
                        f'{cfg.get("ann_file") or cfg["type"]} holds no '
                        'image'
                    ) from error
                raise CalibrationError(
                    f'cannot build the calibration dataset: {error}. Check '
                    'data_root and ann_file, or calibrate on a folder of '
                    'images with --calib-source'
                ) from error
        self.where = [
            (part, i) for part in self.parts for i in range(len(part))
        ]
        self.names = [
            str(part.get_data_info(i).get('img_path', f'image {i}'))
            for part, i in self.where
        ]

    @property
    def metainfo(self) -> dict:
        """What the first of them says of itself."""
        return self.parts[0].metainfo

    def __getitem__(self, index: int) -> dict:
        part, i = self.where[index]
        data = part.prepare_data(i)
        if data is None:
            raise ValueError('the pipeline gave nothing')
        return data


def images_below(folder: str | Path) -> list[str]:
    """Image files of a folder and of all folders in it, links followed.

    Args:
        folder (str | Path): Where to look. Files and folders whose names
            begin with a dot do not count: other programs put them there.

    Returns:
        list[str]: Paths in order of name. A folder that several links lead
        to counts once.
    """
    found, seen = [], set()
    for here, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        real = os.path.realpath(here)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if name[0] != '.']
        found += [
            str(Path(here) / name)
            for name in files
            if name[0] != '.' and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


class _Folder:
    """The images of a folder, sorted by name."""

    def __init__(self, folder: str, pipeline: list[dict]) -> None:
        path = Path(folder)
        if not path.is_dir():
            raise CalibrationError(
                f'calibration source {folder!r}: allowed are "train", '
                '"test" or an existing folder of images'
            )
        self.names = images_below(path)
        self.pipeline = Compose(pipeline)

    def __getitem__(self, index: int) -> dict:
        return self.pipeline(
            dict(img_path=self.names[index], img_id=index, instances=[])
        )
