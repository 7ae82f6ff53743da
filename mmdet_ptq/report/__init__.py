# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Reports: what is known of runs as one HTML file."""

from .auto import auto_page
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
from .predictions import ImageRow, packed, row_of, unique, unpacked
from .sensitivity import check_words, sensitivity_page, suggested_words

__all__ = [
    'DATA',
    'PAGE',
    'RESULT',
    'ImageRow',
    'Run',
    'auto_page',
    'check_words',
    'gathered',
    'layer_table',
    'packed',
    'read_run',
    'row_of',
    'sensitivity_page',
    'suggested_words',
    'unique',
    'unpacked',
    'write_budget',
    'write_data',
    'write_page',
    'write_report',
    'write_text',
]
