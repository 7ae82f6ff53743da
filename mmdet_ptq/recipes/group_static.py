# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A grid for each eighth of the channels of an input (Q-BERT, VS-Quant).

As ``uniform``, but the inputs of linear layers have eight grids, each for as
many consecutive channels. The product is then a sum of eight, each of which
is scaled by itself, which costs additions in float.
"""

_base_ = './_base_/calibrated.py'
rules = [
    *_base_.rules[:-2],
    dict(match='@linear', act=dict(granularity='group', group_size='1/8')),
    *_base_.rules[-2:],
]
