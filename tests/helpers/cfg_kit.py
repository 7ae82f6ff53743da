# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Small parts of a ``quant_cfg``."""

RULE = dict(match='*', weight=dict(type='UniformQuantizer'))


PASSES = [dict(type='FoldBatchNorm'), dict(type='Observe')]
