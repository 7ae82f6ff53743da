# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Adapters: raw outputs of a detector, aligned row by row."""

from .base import Adapter, RawAdapter, ReadsHead, find_adapter
from .dense import DenseAdapter, GFLAdapter, YOLOXAdapter
from .query import QueryAdapter
from .roi import RoIAdapter
from .wrappers import detector_of, without_wrapper

__all__ = [
    'Adapter',
    'DenseAdapter',
    'GFLAdapter',
    'QueryAdapter',
    'RawAdapter',
    'ReadsHead',
    'RoIAdapter',
    'YOLOXAdapter',
    'detector_of',
    'find_adapter',
    'without_wrapper',
]
