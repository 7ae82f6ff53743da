# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""GPTQ (Frantar et al., 2023), carried to detectors."""

_base_ = './_base_/calibrated.py'
scale_inputs = True
passes = [*_base_.passes, dict(type='CompensateRounding')]
