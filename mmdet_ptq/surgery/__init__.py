# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What changes a float model, and can be done again on load."""

from .attention import SplitMultiheadAttention, SplitWindowMSA
from .decompose import decompose
from .fold import fold_batch_norms, out_channels, restore_folds
from .standardized import PlainConvAWS2d, PlainConvWS2d

__all__ = [
    'PlainConvAWS2d',
    'PlainConvWS2d',
    'SplitMultiheadAttention',
    'SplitWindowMSA',
    'decompose',
    'fold_batch_norms',
    'out_channels',
    'restore_folds',
]
