# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The Python door: quantize a detector you hold, load one you saved."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from .artefact import (
    is_artefact,
    load_artefact,
    save_artefact,
    saved_meta,
)
from .calibration import Batches, Session, notes_on
from .context import count_images
from .detectors import detector_of
from .engine.arguments import (
    check_file_arguments,
    check_model,
    take_batches,
)
from .engine.checkpoint import read_checkpoint
from .engine.quantize import run_quantization
from .errors import CheckpointError
from .quant_cfg import parse_quant_cfg


# gradients are needed, which inference mode would turn off for good
@torch.inference_mode(False)
def quantize_detector(
    model: nn.Module, dataloader: Iterable[dict], quant_cfg: dict
) -> Session:
    """Quantizes a float detector in place.

    Args:
        model (nn.Module): A detector of MMDetection with its weights, e.g.
            from ``mmdet.apis.init_detector``.
        dataloader (Iterable[dict]): Batches as ``model.test_step`` takes
            them. ``calibration.num_samples`` counts batches here; its
            source and seed are not used.
        quant_cfg (dict): See ``docs/quant_cfg.md``, e.g.
            ``dict(recipe='uniform', bits='w8a8')``.

    Returns:
        Session: Plan, graph, times and notes; ``model`` is ready to use.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.

    Examples:
        >>> from mmdet.apis import init_detector  # doctest: +SKIP
        >>> model = init_detector(config, checkpoint)  # doctest: +SKIP
        >>> quantize_detector(  # doctest: +SKIP
        ...     model, runner.train_dataloader, dict(recipe='uniform',
        ...                                          bits='w8a8'))
    """
    config = parse_quant_cfg(quant_cfg)
    check_model(model)
    batches = take_batches(dataloader, config.calibration.num_samples)
    feed = Batches(model, batches)
    images = sum(count_images(batch['inputs']) or 0 for batch in batches)
    notes_on(feed, images)
    return run_quantization(model, config, batches[0], feed)


def save_quantized(session: Session, path: str | Path) -> None:
    """Saves what :func:`quantize_detector` made.

    Args:
        session (Session): Its return value.
        path (str | Path): Where to.

    Raises:
        PTQError: If it cannot be written; an older file survives. Or if an
            argument is of another type.
    """
    check_file_arguments(
        Session,
        session,
        path,
        'arguments are session and path, in this order, and the session is '
        'what quantize_detector returns',
    )
    save_artefact(
        path,
        session.model,
        session.plan,
        session.edits,
        session.config.to_dict(),
        getattr(session.model, 'dataset_meta', None) or {},
    )


def load_quantized(model: nn.Module, path: str | Path) -> nn.Module:
    """Makes a float model of the same config into a saved quantized one.

    Args:
        model (nn.Module): As the config builds it, e.g. by
            ``mmdet.apis.init_detector(config)``; changed in place.
        path (str | Path): A file of :func:`save_quantized`, ``tools/ptq.py``
            or :class:`PTQRunner`.

    Returns:
        nn.Module: The model, in eval mode.

    Raises:
        CheckpointError: If the file is not of this package or this model.
            Where the message says so, the model is changed in part.
        PTQError: If an argument is of another type.
    """
    check_file_arguments(
        nn.Module,
        model,
        path,
        'arguments are model and path, in this order, and '
        'mmdet.apis.init_detector(config) gives a model',
    )
    saved = read_checkpoint(path)
    if not is_artefact(saved):
        raise CheckpointError(
            f'{path} is no quantized checkpoint; quantize a float one with '
            'tools/ptq.py or quantize_detector'
        )
    load_artefact(detector_of(model), saved)
    if meta := saved_meta(saved):
        model.dataset_meta = meta
    return model
