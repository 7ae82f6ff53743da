# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A detector that becomes quantized when it is given a quantized file."""

from typing import Any

from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from torch import nn

from ..detectors import detector_of
from .artefact import load_artefact, saved_meta
from .guard import KEY

NAME = 'QuantizableDetector'


@MODELS.register_module(name=NAME)
def quantizable_detector(detector_type: Any, **settings: Any) -> nn.Module:
    """Builds a float detector that takes quantized files as well.

    The config in a work dir names it, so that whatever loads by
    ``load_state_dict`` (``init_detector``, ``DetInferencer``, MMEngine's
    runner) has the quantized detector from ``quantized.pth``, and the float
    one from a float checkpoint.

    Args:
        detector_type (str | type): The ``type`` of the detector.
        **settings: All else that its config says.

    Returns:
        nn.Module: The float detector.
    """
    from mmdet.registry import MODELS as detectors

    model = detectors.build(dict(type=detector_type, **settings))
    model.register_load_state_dict_pre_hook(_take_artefact)
    if isinstance(model, BaseTTAModel):
        # MMEngine loads into what is inside
        model.module.register_load_state_dict_pre_hook(_take_artefact)
    return model


def as_quantizable(model: dict) -> dict:
    """The config of a model as one of :func:`quantizable_detector`."""
    if model['type'] == NAME:
        return model
    rest = {k: v for k, v in model.items() if k != 'type'}
    return dict(type=NAME, detector_type=model['type'], **rest)


def as_float(model: dict) -> dict:
    """Takes :func:`as_quantizable` back."""
    if model['type'] != NAME:
        return model
    rest = {k: v for k, v in model.items() if k != 'type'}
    return dict(type=rest.pop('detector_type'), **rest)


def _take_artefact(
    model: nn.Module,
    state_dict: dict,
    prefix: str,
    local_metadata: dict,
    *_: Any,
) -> None:
    """Runs before the root loads; puts its own tensors in the file's place."""
    # a model of teacher and student puts names of its own before those given
    for given in ('', 'teacher.'):
        if not prefix and given + KEY in state_dict:
            saved = {
                name.removeprefix(given): value
                for name, value in state_dict.items()
            }
            break
    else:
        return
    load_artefact(detector_of(model), saved)
    if meta := saved_meta(saved):
        # whoever loads reads it afterwards, from the same dict
        saved['meta']['dataset_meta'] = meta
    own = model.state_dict()
    if KEY in local_metadata:
        local_metadata[KEY].disarm(own._metadata)
    state_dict.clear()
    state_dict.update(own)
