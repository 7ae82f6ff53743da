# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers: pure tensor maths, torch only."""

from .base import BaseQuantizer
from .granularity import Granularity
from .uniform import UniformQuantizer

__all__ = ['BaseQuantizer', 'Granularity', 'UniformQuantizer']
