# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
from .hooks import CalibrationHook, ProgressHook
from .loops import CalibLoop
from .quantize import run_quantization
from .runner import PTQRunner

__all__ = [
    'CalibLoop',
    'CalibrationHook',
    'PTQRunner',
    'ProgressHook',
    'run_quantization',
]
