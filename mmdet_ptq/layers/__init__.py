# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .attention import SplitMultiheadAttention, SplitWindowMSA
from .base import QuantLayer, float_mode, quant_layers
from .convert import convert, decompose
from .matmul import MatMul
from .standardized import PlainConvAWS2d, PlainConvWS2d
from .state import named_tensors, restore_tensors
from .twins import is_leaf, ports_of

__all__ = [
    'MatMul',
    'PlainConvAWS2d',
    'PlainConvWS2d',
    'QuantLayer',
    'SplitMultiheadAttention',
    'SplitWindowMSA',
    'convert',
    'decompose',
    'float_mode',
    'is_leaf',
    'named_tensors',
    'ports_of',
    'quant_layers',
    'restore_tensors',
]
