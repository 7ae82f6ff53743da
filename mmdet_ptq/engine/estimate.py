# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a quantized detector will cost, without a checkpoint or images."""

from collections.abc import Iterator
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData

from ..calibration import Batches
from ..cost import cost_of, storage_mb
from ..errors import QuantConfigError
from ..passes import AllocateBits, AllocateGroups, FoldBatchNorm
from ..quant_cfg import QuantConfig
from .quantize import prepare
from .result import left_float
from .untrained import untrained


def estimate(
    cfg: Config, quant: QuantConfig, size: tuple[int, int]
) -> dict[str, Any]:
    """Surveys a detector with random weights, and counts.

    Quantizers are those of the rules, without ranges; batch norms are folded
    if a pass does that. What other passes change (widths that they allocate,
    channels that they scale) is known after a run only.

    Args:
        cfg (Config): The detector's config.
        quant (QuantConfig): What becomes of it.
        size (tuple[int, int]): Height and width of the image in pixels.

    Returns:
        dict[str, Any]: Plain JSON types, as in ``ptq_result.json``:
        ``config``, ``recipe``, ``bits``, ``scope``, ``storage_mb``,
        ``cost``, ``layers`` and ``notes``.

    Raises:
        PTQError: One of its subclasses, if the detector cannot be built or
            run, or the rules do not fit it.
    """
    model = untrained(cfg)
    batch = _noise(size)
    session = prepare(model, quant, batch, Batches(model, [batch]))
    with torch.no_grad():
        for one in quant.built_passes:
            if isinstance(one, FoldBatchNorm):
                one.run(session)
    full, packed = storage_mb(model, session.graph)
    left = left_float(session.plan, session.graph)
    return dict(
        config=cfg.filename or '',
        recipe=quant.recipe,
        bits=str(quant.bits) if quant.bits else 'by rule',
        scope=quant.scope,
        storage_mb=dict(float=round(full, 4), quantized=round(packed, 4)),
        cost=cost_of(model, session.graph, session.plan),
        layers=dict(float=left),
        notes=[*session.notes, *_unknown(quant)],
    )


def _unknown(quant: QuantConfig) -> list[str]:
    """Sentences on what passes choose, which is not counted."""
    kinds = {AllocateBits: 'widths', AllocateGroups: 'numbers of grids'}
    return [
        f'{kind.__name__} chooses {what} in a run; counted here are those of '
        "the rules: give this command the run's work dir afterwards"
        for kind, what in kinds.items()
        if any(isinstance(one, kind) for one in quant.built_passes)
    ]


def _noise(size: tuple[int, int]) -> dict[str, Any]:
    """A batch of one image of noise, as ``model.test_step`` takes it."""
    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            ori_shape=size,
            img_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
        ),
        gt_instances=InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
        ),
    )
    image = torch.randint(256, (3, *size), dtype=torch.uint8)
    return dict(inputs=[image], data_samples=[sample])


def size_of(cfg: Config) -> tuple[int, int]:
    """Height and width of an image that fills the size of the test pipeline.

    Args:
        cfg (Config): The detector's config.

    Raises:
        QuantConfigError: If it does not resize images.
    """
    loader = cfg.get('test_dataloader') or {}
    for scale in _scales(loader.get('dataset')):
        return min(scale), max(scale)
    raise QuantConfigError(
        f'the test pipeline of {cfg.filename} says no image size; give '
        '--size HEIGHT WIDTH'
    )


def _scales(found: Any) -> Iterator[tuple[int, int]]:
    """Scales of all transforms below, in order."""
    if isinstance(found, dict):
        scale = found.get('scale')
        if 'Resize' in str(found.get('type')) and isinstance(
            scale, list | tuple
        ):
            yield scale[0], scale[1]
        found = list(found.values())
    if isinstance(found, list | tuple):
        for one in found:
            yield from _scales(one)
