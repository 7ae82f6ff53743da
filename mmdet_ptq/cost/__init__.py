# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a detector costs: products, their bits, and bytes of parameters."""

from .grouping import grouping_bops
from .macs import count_macs, layer_macs
from .paper import (
    MIB,
    MILLION_FLOATS,
    reg_ptq_flops,
    reg_ptq_inventory,
    stored,
)
from .report import bops, cost_of, operand_bits, part_of
from .storage import storage_mb

__all__ = [
    'MIB',
    'MILLION_FLOATS',
    'bops',
    'cost_of',
    'count_macs',
    'grouping_bops',
    'layer_macs',
    'operand_bits',
    'part_of',
    'reg_ptq_flops',
    'reg_ptq_inventory',
    'storage_mb',
    'stored',
]
