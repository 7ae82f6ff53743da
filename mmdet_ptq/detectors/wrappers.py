# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The detector inside what is wrapped around one."""

from mmdet.models.detectors import SemiBaseDetector
from mmdet.models.mot import BaseMOTModel
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn


def without_wrapper(model: nn.Module) -> nn.Module:
    """What the names in float checkpoints are of, as MMEngine loads them.

    Args:
        model (nn.Module): A model, or one inside a wrapper for several
            GPUs or inside test time augmentation.

    Returns:
        nn.Module: The model inside.
    """
    if is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        return without_wrapper(model.module)
    return model


def detector_of(model: nn.Module) -> nn.Module:
    """What predicts in a model; the model itself if nothing is around it.

    Args:
        model (nn.Module): A detector, or one inside a wrapper for several
            GPUs, inside test time augmentation, inside a tracker, or beside
            its student or teacher.

    Returns:
        nn.Module: The detector, whose names artefacts use.
    """
    model = without_wrapper(model)
    if isinstance(model, SemiBaseDetector):
        # as its own predict chooses
        on = model.semi_test_cfg.get('predict_on', 'teacher')
        return model.teacher if on == 'teacher' else model.student
    if isinstance(model, BaseMOTModel) and model.with_detector:
        return detector_of(model.detector)
    return model
