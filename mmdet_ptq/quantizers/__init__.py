# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers: pure tensor maths, torch only."""

from .base import BaseQuantizer
from .granularity import Granularity
from .llaq import LLAQuantizer, ShiftForm, lut, shift_form
from .subset import SubsetQuantizer
from .uniform import UniformQuantizer

__all__ = [
    'BaseQuantizer',
    'Granularity',
    'LLAQuantizer',
    'ShiftForm',
    'SubsetQuantizer',
    'UniformQuantizer',
    'lut',
    'shift_form',
]
