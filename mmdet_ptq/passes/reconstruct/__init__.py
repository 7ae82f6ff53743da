# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .learners import (
    AdaRound,
    LearnedCodebook,
    LearnedSteps,
    LearnedWeights,
    Learner,
    SubsetMultipliers,
)
from .losses import DetectionLoss, FisherLoss, L2Loss, PredictionDifference
from .reconstruct import Reconstruct

__all__ = [
    'AdaRound',
    'DetectionLoss',
    'FisherLoss',
    'L2Loss',
    'LearnedCodebook',
    'LearnedSteps',
    'LearnedWeights',
    'Learner',
    'PredictionDifference',
    'Reconstruct',
    'SubsetMultipliers',
]
