# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .fold_bn import FoldBatchNorm
from .init_ranges import InitRanges
from .reconstruct import Reconstruct
from .task_ranges import LAPQ, ChooseExponents

__all__ = [
    'LAPQ',
    'ChooseExponents',
    'FoldBatchNorm',
    'InitRanges',
    'Reconstruct',
]
