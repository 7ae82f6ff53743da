# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a detector costs: products, their bits, and bytes of parameters."""

from .bops import bops, operand_bits
from .grouping import grouping_bops
from .macs import count_macs, layer_macs
from .mixed import paired_bits
from .paper import (
    MIB,
    MILLION_FLOATS,
    reg_ptq_flops,
    reg_ptq_inventory,
    stored,
)
from .report import cost_of, part_of
from .storage import REST, storage_bits, storage_mb
from .table import OTHER, mean_bits, part_table

__all__ = [
    'MIB',
    'MILLION_FLOATS',
    'OTHER',
    'REST',
    'bops',
    'cost_of',
    'count_macs',
    'grouping_bops',
    'layer_macs',
    'mean_bits',
    'operand_bits',
    'paired_bits',
    'part_of',
    'part_table',
    'reg_ptq_flops',
    'reg_ptq_inventory',
    'storage_bits',
    'storage_mb',
    'stored',
]
