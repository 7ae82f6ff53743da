# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors with random weights, images, and outputs to compare."""

from .compare import Selections, bfloat16, cosine, raw_outputs
from .detectors import (
    config_path,
    noise_batches,
    random_detector,
    settle_batch_norms,
)

__all__ = [
    'Selections',
    'bfloat16',
    'config_path',
    'cosine',
    'noise_batches',
    'random_detector',
    'raw_outputs',
    'settle_batch_norms',
]
