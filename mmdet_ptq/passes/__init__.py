# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .fold_bn import FoldBatchNorm
from .init_ranges import InitRanges
from .reconstruct import Reconstruct
from .task_ranges import LAPQ, ChooseNorms

__all__ = ['LAPQ', 'ChooseNorms', 'FoldBatchNorm', 'InitRanges', 'Reconstruct']
