# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Passes: in order, how the numbers of a quantization are found."""

from .add_noise import AddNoise
from .allocate_bits import AllocateBits
from .allocate_groups import AllocateGroups
from .base import BasePass, checked
from .choose_exponents import ChooseExponents
from .compensate import CompensateRounding
from .correct_bias import CorrectBias
from .equalize import EqualizeChannels
from .fold_bn import FoldBatchNorm
from .integer_softmax import IntegerSoftmax
from .lapq import LAPQ
from .mix_heads import MixHeads
from .observe import Observe
from .quantize_numerator import QuantizeNumerator
from .reconstruct import Reconstruct
from .reparametrize_norm import ReparametrizeNorm
from .scale_inputs import ScaleInputs
from .search_scales import SearchScales
from .set_ranges import SetRanges
from .shift_gelu import ShiftGelu
from .split_positions import SplitPositions

__all__ = [
    'LAPQ',
    'AddNoise',
    'AllocateBits',
    'AllocateGroups',
    'BasePass',
    'ChooseExponents',
    'CompensateRounding',
    'CorrectBias',
    'EqualizeChannels',
    'FoldBatchNorm',
    'IntegerSoftmax',
    'MixHeads',
    'Observe',
    'QuantizeNumerator',
    'Reconstruct',
    'ReparametrizeNorm',
    'ScaleInputs',
    'SearchScales',
    'SetRanges',
    'ShiftGelu',
    'SplitPositions',
    'checked',
]
