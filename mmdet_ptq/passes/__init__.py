# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Passes: in order, how the numbers of a quantization are found."""

from .base import BasePass, checked
from .choose_exponents import ChooseExponents
from .compensate import CompensateRounding
from .correct_bias import CorrectBias
from .equalize import EqualizeChannels
from .fold_bn import FoldBatchNorm
from .lapq import LAPQ
from .observe import Observe
from .reconstruct import Reconstruct
from .scale_inputs import ScaleInputs
from .search_scales import SearchScales
from .set_ranges import SetRanges

__all__ = [
    'LAPQ',
    'BasePass',
    'ChooseExponents',
    'CompensateRounding',
    'CorrectBias',
    'EqualizeChannels',
    'FoldBatchNorm',
    'Observe',
    'Reconstruct',
    'ScaleInputs',
    'SearchScales',
    'SetRanges',
    'checked',
]
