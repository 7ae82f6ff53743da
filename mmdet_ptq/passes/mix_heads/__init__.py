# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels of attention heads, mixed so that they quantize better."""

from .mix_heads import MixHeads

__all__ = ['MixHeads']
