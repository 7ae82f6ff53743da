# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What changes a float model, and can be done again on load."""

from .attention import SplitMultiheadAttention, SplitWindowMSA
from .decompose import Decomposable, decompose
from .edits import AddedBias, Decomposed, Edit, FoldedNorm, edits_of
from .fold import fold_batch_norm, out_channels, scaled_outputs
from .fuse import FusedWeight, copy_model, fuse_weights
from .integer_softmax import WholeSoftmax
from .modules import find_module
from .norm_input import NormInput, norm_inputs
from .numerator import DIVISORS, SoftmaxNumerator
from .padding import PaddedShiftWindowMSA, PadsWithValue, can_pad
from .positions import PositionsSplit, positions_used
from .products import RoutedProducts
from .reparametrized_norm import ReparametrizedNorm
from .scale import (
    input_columns,
    output_rows,
    scale_inputs,
    scale_outputs,
    scaled_inputs,
)
from .scaled_input import ScaledInput, can_shift
from .standardized import PlainConvAWS2d, PlainConvWS2d

__all__ = [
    'DIVISORS',
    'AddedBias',
    'Decomposable',
    'Decomposed',
    'Edit',
    'FoldedNorm',
    'FusedWeight',
    'NormInput',
    'PaddedShiftWindowMSA',
    'PadsWithValue',
    'PlainConvAWS2d',
    'PlainConvWS2d',
    'PositionsSplit',
    'ReparametrizedNorm',
    'RoutedProducts',
    'ScaledInput',
    'SoftmaxNumerator',
    'SplitMultiheadAttention',
    'SplitWindowMSA',
    'WholeSoftmax',
    'can_pad',
    'can_shift',
    'copy_model',
    'decompose',
    'edits_of',
    'find_module',
    'fold_batch_norm',
    'fuse_weights',
    'input_columns',
    'norm_inputs',
    'out_channels',
    'output_rows',
    'positions_used',
    'scale_inputs',
    'scale_outputs',
    'scaled_inputs',
    'scaled_outputs',
]
