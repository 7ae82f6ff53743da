# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Charts as SVG: plain numbers in, markup out."""

from .budget import budget
from .counts import columns, grid_histogram, stacked
from .network import bits_class, bits_name, lines, strip
from .points import points
from .values import bars, intervals, paired

__all__ = [
    'bars',
    'bits_class',
    'bits_name',
    'budget',
    'columns',
    'grid_histogram',
    'intervals',
    'lines',
    'paired',
    'points',
    'stacked',
    'strip',
]
