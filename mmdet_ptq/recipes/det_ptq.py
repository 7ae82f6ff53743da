# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""DetPTQ (Niu et al., 2023): an exponent of the Lp search for each unit.

Each is the one with which the detector's outputs are nearest to the float
ones.
"""

_base_ = './_base_/rules.py'
passes = [
    dict(type='FoldBatchNorm'),
    dict(type='Observe'),
    dict(type='SetRanges'),
    dict(type='ChooseExponents'),
    dict(type='CorrectBias'),
]
