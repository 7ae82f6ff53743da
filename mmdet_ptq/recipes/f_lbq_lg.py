# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""F-LBQ (ICASSP 2026) by its Lagrangian: one price of a bit."""

_base_ = './f_lbq_dp.py'
pass_args = dict(AllocateBits=dict(solver='lagrange'))
