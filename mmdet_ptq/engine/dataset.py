# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a test dataset says of its classes."""

from typing import Any

from mmdet.models.detectors import RPN
from torch import nn

from ..errors import QuantConfigError


def check_classes(model: nn.Module, metainfo: dict) -> None:
    """Refuses a dataset of another number of classes than the heads have.

    The proposals of an RPN that stands alone have no classes.

    Args:
        model (nn.Module): The detector.
        metainfo (dict): Of the test dataset.

    Raises:
        QuantConfigError: Names both numbers.
    """
    if isinstance(model, RPN):
        return
    classes = metainfo.get('classes')
    counts = {
        f'{name}.num_classes': m.num_classes
        for name, m in model.named_modules()
        if type(getattr(m, 'num_classes', None)) is int
        and name.endswith(('bbox_head', 'bbox_head.0'))
    }
    if classes is None or not counts or len(classes) in counts.values():
        return
    raise QuantConfigError(
        f'the test dataset has {len(classes)} classes, the model has '
        + ', '.join(f'{n}={c}' for n, c in counts.items())
        + '; check metainfo of the dataset and num_classes of the model'
    )


def dataset_meta(checkpoint: dict, metainfo: dict) -> dict[str, Any]:
    """Classes and colours for the artefact, plain JSON types.

    Args:
        checkpoint (dict): The float checkpoint; what it says comes first.
        metainfo (dict): Of the test dataset.

    Returns:
        dict[str, Any]: ``classes`` and ``palette``, as far as known.
    """
    meta = checkpoint.get('meta', {}).get('dataset_meta')
    if meta is None:
        meta = metainfo
    return {
        k: list(v) if isinstance(v, tuple | list) else v
        for k, v in meta.items()
        if k in ('classes', 'palette')
    }
