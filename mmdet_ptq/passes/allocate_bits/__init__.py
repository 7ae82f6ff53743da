# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Mixed precision: bits for each tensor or group of channels."""

from .allocate_bits import AllocateBits

__all__ = ['AllocateBits']
