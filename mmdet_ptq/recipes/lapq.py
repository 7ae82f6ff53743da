# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""LAPQ (Nahshan et al., 2021): ranges that the detector's loss likes best.

One exponent of the Lp search for all, then Powell's method over all ranges.
"""

_base_ = './_base_/rules.py'
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='LAPQ'),
    dict(type='CorrectBias'),
]
