# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What changes a float model, and can be done again on load."""

from .attention import SplitMultiheadAttention, SplitWindowMSA
from .decompose import Decomposable, decompose
from .edits import AddedBias, Decomposed, Edit, FoldedNorm, edits_of
from .fold import fold_batch_norm, out_channels
from .fuse import FusedWeight, copy_model, fuse_weights
from .products import RoutedProducts
from .scaled_input import ScaledInput, can_shift
from .standardized import PlainConvAWS2d, PlainConvWS2d

__all__ = [
    'AddedBias',
    'Decomposable',
    'Decomposed',
    'Edit',
    'FoldedNorm',
    'FusedWeight',
    'PlainConvAWS2d',
    'PlainConvWS2d',
    'RoutedProducts',
    'ScaledInput',
    'SplitMultiheadAttention',
    'SplitWindowMSA',
    'can_shift',
    'copy_model',
    'decompose',
    'edits_of',
    'fold_batch_norm',
    'fuse_weights',
    'out_channels',
]
