# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .learners import (
    AdaRound,
    LearnedCodebook,
    LearnedSteps,
    LearnedWeights,
    Learner,
    SubsetMultipliers,
)
from .reconstruct import Reconstruct

__all__ = [
    'AdaRound',
    'LearnedCodebook',
    'LearnedSteps',
    'LearnedWeights',
    'Learner',
    'Reconstruct',
    'SubsetMultipliers',
]
