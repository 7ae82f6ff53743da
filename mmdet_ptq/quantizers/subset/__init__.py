# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""SubSetQ's quantizer: sums of two powers of two."""

from .quantizer import SubsetQuantizer

__all__ = ['SubsetQuantizer']
