# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .fold_bn import FoldBatchNorm
from .init_ranges import InitRanges

__all__ = ['FoldBatchNorm', 'InitRanges']
