# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a reconstruction may change in a unit."""

from .adaround import AdaRound, rectified_sigmoid
from .base import Learner
from .codebook import LearnedCodebook
from .multipliers import SubsetMultipliers
from .steps import LearnedSteps
from .weights import LearnedWeights

__all__ = [
    'AdaRound',
    'LearnedCodebook',
    'LearnedSteps',
    'LearnedWeights',
    'Learner',
    'SubsetMultipliers',
    'rectified_sigmoid',
]
