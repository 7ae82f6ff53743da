# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Losses on the output of a unit, and of the whole detector."""

from .base import (
    GlobalLoss,
    GradientWeighted,
    LocalLoss,
    Loss,
    Outputs,
    Target,
    build_loss,
)
from .detection import DetectionLoss
from .local import FisherLoss, L2Loss, mean_over_positions
from .perturbation import OutputPerturbation
from .prediction_difference import PredictionDifference

__all__ = [
    'DetectionLoss',
    'FisherLoss',
    'GlobalLoss',
    'GradientWeighted',
    'L2Loss',
    'LocalLoss',
    'Loss',
    'OutputPerturbation',
    'Outputs',
    'PredictionDifference',
    'Target',
    'build_loss',
    'mean_over_positions',
]
