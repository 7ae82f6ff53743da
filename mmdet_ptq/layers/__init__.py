# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Twins: quantized layers that stand in for float ones."""

from .autocast import in_bfloat16
from .base import QuantLayer, quant_layers
from .convert import convert
from .integer_softmax import OCTAVES, integer_softmax
from .matmul import MatMul
from .modes import float_mode, quantizing
from .norm import InputLayerNorm
from .one_by_one import divide_batches
from .position import PositionLinear
from .state import named_tensors, non_finite, restore_tensors
from .twins import is_leaf, ports_of, twin_class

__all__ = [
    'OCTAVES',
    'InputLayerNorm',
    'MatMul',
    'PositionLinear',
    'QuantLayer',
    'convert',
    'divide_batches',
    'float_mode',
    'in_bfloat16',
    'integer_softmax',
    'is_leaf',
    'named_tensors',
    'non_finite',
    'ports_of',
    'quant_layers',
    'quantizing',
    'restore_tensors',
    'twin_class',
]
