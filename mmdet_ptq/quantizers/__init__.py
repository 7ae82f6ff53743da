# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers: pure tensor maths, torch only."""

from .base import BaseQuantizer
from .capabilities import (
    FitsTensor,
    HasRange,
    LearnsEnds,
    LearnsStep,
    LearnsTable,
    PerInstance,
    Ranges,
    Refines,
    Rescales,
    Searchable,
    SoftRounding,
)
from .encoding import Encoding, UniformEncoding
from .export_ops import export_mode
from .granularity import Granularity
from .groups import nearest
from .instance_groups import InstanceGroupQuantizer
from .llaq import LLAQuantizer, ShiftForm, lut, shift_form
from .packing import pack, unpack
from .subset import SubsetQuantizer
from .table import TableQuantizer
from .table_encoding import TableEncoding
from .uniform import UniformQuantizer

__all__ = [
    'BaseQuantizer',
    'Encoding',
    'FitsTensor',
    'Granularity',
    'HasRange',
    'InstanceGroupQuantizer',
    'LLAQuantizer',
    'LearnsEnds',
    'LearnsStep',
    'LearnsTable',
    'PerInstance',
    'Ranges',
    'Refines',
    'Rescales',
    'Searchable',
    'ShiftForm',
    'SoftRounding',
    'SubsetQuantizer',
    'TableEncoding',
    'TableQuantizer',
    'UniformEncoding',
    'UniformQuantizer',
    'export_mode',
    'lut',
    'nearest',
    'pack',
    'shift_form',
    'unpack',
]
