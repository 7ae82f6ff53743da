# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Symmetric grids; linear layers have one for the whole weight."""

_base_ = './tensor_rules.py'
_symmetric = dict(type='UniformQuantizer', symmetric=True)
rules = [
    dict(
        match='*',
        weight=dict(_symmetric, granularity='channel'),
        act=_symmetric,
    ),
    dict(match='@linear', weight=dict(granularity='tensor')),
    *_base_.rules[-2:],
]
