# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Adapters: raw outputs of a detector, aligned row by row."""

from .base import (
    Adapter,
    PredictionAdapter,
    RawAdapter,
    ReadsHead,
    find_adapter,
    has_adapter,
)
from .choose import adapter_for, why_no_outputs
from .dense import DenseAdapter, GFLAdapter, YOLOXAdapter
from .query import QueryAdapter
from .roi import RoIAdapter
from .wrappers import detector_of, without_wrapper

__all__ = [
    'Adapter',
    'DenseAdapter',
    'GFLAdapter',
    'PredictionAdapter',
    'QueryAdapter',
    'RawAdapter',
    'ReadsHead',
    'RoIAdapter',
    'YOLOXAdapter',
    'adapter_for',
    'detector_of',
    'find_adapter',
    'has_adapter',
    'why_no_outputs',
    'without_wrapper',
]
