# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The learnable logarithmic-affine quantizer of Reg-PTQ."""

from .export import ShiftForm, lut, shift_form
from .quantizer import LLAQuantizer

__all__ = ['LLAQuantizer', 'ShiftForm', 'lut', 'shift_form']
