# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Losses on the output of a unit, and of the whole detector."""

from .detection import DetectionLoss
from .local import FisherLoss, L2Loss, mean_over_positions
from .prediction_difference import PredictionDifference

__all__ = [
    'DetectionLoss',
    'FisherLoss',
    'L2Loss',
    'PredictionDifference',
    'mean_over_positions',
]
