# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reports: what is known of runs as one HTML file."""

from .files import (
    DATA,
    PAGE,
    RESULT,
    Run,
    read_run,
    write_data,
    write_text,
)
from .gather import gathered
from .layers import layer_table
from .page import write_budget, write_page, write_report
from .predictions import ImageRow, row_of, unique

__all__ = [
    'DATA',
    'PAGE',
    'RESULT',
    'ImageRow',
    'Run',
    'gathered',
    'layer_table',
    'read_run',
    'row_of',
    'unique',
    'write_budget',
    'write_data',
    'write_page',
    'write_report',
    'write_text',
]
