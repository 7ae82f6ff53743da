# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""NoisyQuant (Liu et al., CVPR 2023) on ranges of least error."""

_base_ = './_base_/calibrated.py'
passes = [*_base_.passes[:3], dict(type='AddNoise'), _base_.passes[3]]
