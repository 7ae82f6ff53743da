# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .scale_inputs import ScaleInputs

__all__ = ['ScaleInputs']
