# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a test dataset says of its classes, and its images."""

import logging
from typing import Any

from mmdet.models.detectors import RPN
from mmengine.logging import print_log
from torch import nn

from ..calibration import CalibrationImages
from ..errors import QuantConfigError


def check_classes(model: nn.Module, metainfo: dict) -> None:
    """Refuses a dataset of another number of classes than the heads have.

    The proposals of an RPN that stands alone have no classes. A panoptic
    model may be tested on things, or on things and stuff. Where classes come
    from a prompt the heads have no number of them; then a difference is a
    warning.

    Args:
        model (nn.Module): The detector.
        metainfo (dict): Of the test dataset.

    Raises:
        QuantConfigError: Names both numbers.
    """
    if isinstance(model, RPN):
        return
    classes = metainfo.get('classes')
    counts = _counts(model)
    if classes is None or not counts or len(classes) in counts.values():
        return
    found = (
        f'the test dataset has {len(classes)} classes, the model has '
        + ', '.join(f'{n}={c}' for n, c in counts.items())
    )
    if _prompted(model):
        print_log(
            f'{found}; this is not checked, since the classes of this model '
            'come from its prompt',
            'current',
            logging.WARNING,
        )
        return
    raise QuantConfigError(
        f'{found}; check metainfo of the dataset and num_classes of the model'
    )


def _counts(model: nn.Module) -> dict[str, int]:
    """Numbers of classes by the place that they stand in."""

    def whole(module: nn.Module, name: str) -> bool:
        return type(getattr(module, name, None)) is int

    counts = {}
    for name, m in model.named_modules():
        last = name.endswith(('bbox_head', 'bbox_head.0'))
        if last and whole(m, 'num_classes'):
            counts[f'{name}.num_classes'] = m.num_classes
    for name, m in model.named_modules():
        stuff = 'num_stuff_classes'
        if counts and whole(m, stuff) and whole(m, 'num_things_classes'):
            both = m.num_things_classes + m.num_stuff_classes
            counts[f'things and stuff of {name}'] = both
    return counts


def _prompted(model: nn.Module) -> bool:
    """Whether a text says what to find, as in GLIP and Grounding DINO."""
    names = (name for name, _ in model.named_modules())
    return any(name.split('.')[-1] == 'language_model' for name in names)


def dataset_meta(checkpoint: dict, metainfo: dict) -> dict[str, Any]:
    """Classes, colours and the like, for the artefact.

    Args:
        checkpoint (dict): The float checkpoint; what it says comes first.
            MMDetection 2.x wrote ``CLASSES`` and ``PALETTE``.
        metainfo (dict): Of the test dataset, for a checkpoint that says
            nothing.

    Returns:
        dict[str, Any]: With keys in lower case, as MMDetection 3.x reads
        them.
    """
    meta = checkpoint.get('meta') or {}
    found = meta.get('dataset_meta')
    if found is None:
        found = {k: meta[k] for k in ('CLASSES', 'PALETTE') if k in meta}
    if not isinstance(found, dict) or not found:
        found = metainfo
    return {str(k).lower(): v for k, v in found.items()}


def tested_images(dataset: Any) -> CalibrationImages:
    """The images of a test dataset, to compare with those that calibrate.

    Args:
        dataset (Any): Of the test dataloader, with its pipeline.
    """
    count = len(dataset)
    return CalibrationImages(
        dataset, [f'{i} of the test' for i in range(count)], range(count)
    )
