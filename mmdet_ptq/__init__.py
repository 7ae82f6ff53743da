# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Post-training quantization of MMDetection detectors."""

from .dependencies import check_dependencies

# before anything that needs them
check_dependencies()

from .apis import load_quantized, quantize_detector, save_quantized  # noqa: E402
from .engine import PTQRunner  # noqa: E402
from .version import __version__  # noqa: E402

__all__ = [
    'PTQRunner',
    '__version__',
    'load_quantized',
    'quantize_detector',
    'save_quantized',
]
