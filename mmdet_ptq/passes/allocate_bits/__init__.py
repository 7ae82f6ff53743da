# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Mixed precision: bits for each tensor or group of channels.

An *operand* is a weight or an input. A *unit* here is what has one width: a
whole operand, or a group of its channels. A *curve* is what a unit adds to the
distance from the float detector at each of its widths.
"""

from .allocate_bits import AllocateBits

__all__ = ['AllocateBits']
