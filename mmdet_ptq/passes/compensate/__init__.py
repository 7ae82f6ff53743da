# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .compensate_rounding import CompensateRounding

__all__ = ['CompensateRounding']
