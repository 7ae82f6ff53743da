# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers: pure tensor maths, torch only."""

from .adalog import AdaLogQuantizer, ShiftEncoding
from .base import BaseQuantizer
from .capabilities import (
    FitsPoints,
    FitsTensor,
    HasRange,
    LearnsEnds,
    LearnsStep,
    LearnsTable,
    PerInstance,
    PlacesValues,
    Ranges,
    Refines,
    Rescales,
    Searchable,
    SoftRounding,
)
from .channel_groups import ChannelGroups
from .codebook import CodebookQuantizer
from .encoding import Encoding, UniformEncoding
from .export_ops import export_mode
from .granularity import Granularity
from .group_encoding import GroupEncoding
from .groups import grid_costs
from .instance_groups import InstanceGroupQuantizer
from .llaq import LLAQuantizer, ShiftForm, lut, shift_form
from .log2 import LogQuantizer
from .packing import pack, unpack
from .power_of_two import PowerOfTwoQuantizer
from .subset import SubsetQuantizer
from .table import TableQuantizer
from .table_encoding import TableEncoding
from .twin_uniform import TwinUniformQuantizer
from .uniform import UniformQuantizer

__all__ = [
    'AdaLogQuantizer',
    'BaseQuantizer',
    'ChannelGroups',
    'CodebookQuantizer',
    'Encoding',
    'FitsPoints',
    'FitsTensor',
    'Granularity',
    'GroupEncoding',
    'HasRange',
    'InstanceGroupQuantizer',
    'LLAQuantizer',
    'LearnsEnds',
    'LearnsStep',
    'LearnsTable',
    'LogQuantizer',
    'PerInstance',
    'PlacesValues',
    'PowerOfTwoQuantizer',
    'Ranges',
    'Refines',
    'Rescales',
    'Searchable',
    'ShiftEncoding',
    'ShiftForm',
    'SoftRounding',
    'SubsetQuantizer',
    'TableEncoding',
    'TableQuantizer',
    'TwinUniformQuantizer',
    'UniformEncoding',
    'UniformQuantizer',
    'export_mode',
    'grid_costs',
    'lut',
    'pack',
    'shift_form',
    'unpack',
]
