# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers: pure tensor maths, torch only."""

from .base import BaseQuantizer
from .capabilities import (
    FitsTensor,
    HasRange,
    LearnsEnds,
    LearnsStep,
    LearnsTable,
    Ranges,
    Refines,
    Rescales,
    Searchable,
    SoftRounding,
)
from .channel_groups import ChannelGroups
from .encoding import Encoding, UniformEncoding
from .export_ops import export_mode
from .granularity import Granularity
from .group_encoding import GroupEncoding
from .llaq import LLAQuantizer, ShiftForm, lut, shift_form
from .packing import pack, unpack
from .subset import SubsetQuantizer
from .table import TableQuantizer
from .table_encoding import TableEncoding
from .uniform import UniformQuantizer

__all__ = [
    'BaseQuantizer',
    'ChannelGroups',
    'Encoding',
    'FitsTensor',
    'Granularity',
    'GroupEncoding',
    'HasRange',
    'LLAQuantizer',
    'LearnsEnds',
    'LearnsStep',
    'LearnsTable',
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
    'pack',
    'shift_form',
    'unpack',
]
