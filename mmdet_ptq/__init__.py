# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Post-training quantization of MMDetection detectors."""

from .apis import load_quantized, quantize_detector, save_quantized
from .engine import PTQRunner
from .version import __version__

__all__ = [
    'PTQRunner',
    '__version__',
    'load_quantized',
    'quantize_detector',
    'save_quantized',
]
