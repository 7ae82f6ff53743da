# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Ranges in the terminal."""

import io
from dataclasses import asdict

from rich.console import Console

from mmdet_ptq.engine.range_table import (
    print_equalization,
    print_ranges,
    print_rounding,
)
from mmdet_ptq.records import EqualizationRecord, RangeRecord, RoundingRecord


def printed(*records, table=print_ranges):
    console = Console(file=io.StringIO(), width=79)
    table(console, [asdict(r) for r in records])
    return console.file.getvalue()


def test_a_line_for_each_record():
    lines = printed(
        RangeRecord('all', 2.4, 0.51234, 0.25, 512),
        RangeRecord('head.cls', 3.0, 12.0, None, 7),
    ).splitlines()
    rows = [line.split() for line in lines]
    assert ['unit', 'exponent', 'loss', 'after', 'evaluations'] in rows
    assert ['all', '2.4', '0.5123', '0.25', '512'] in rows
    assert ['head.cls', '3', '12', '-', '7'] in rows


def test_nothing_without_records():
    assert printed() == ''


def test_a_line_for_each_scaling():
    lines = printed(
        EqualizationRecord('a -> b', 'layer', 'weights', 0.5, 3.25),
        EqualizationRecord('q -> qk', 'qk', '', 0.0, 1.0, 0.125, 0.125),
        table=print_equalization,
    ).splitlines()
    rows = [line.split() for line in lines]
    made = ['a', '->', 'b', 'layer', 'weights', '0.5', '3.25', '-', '-']
    assert made in rows
    assert [
        *('q', '->', 'qk', 'qk', 'left', '-', '1', '0.125', '0.125')
    ] in rows
    assert printed(table=print_equalization) == ''


def test_a_line_for_each_rounded_layer():
    lines = printed(
        RoundingRecord('head.cls', 0.25, 0.125, 0.01, 0.5, 64, 0),
        table=print_rounding,
    ).splitlines()
    rows = [line.split() for line in lines]
    assert ['layer', 'nearest', 'here', 'correction'] in rows
    assert ['head.cls', '0.25', '0.125', '50%'] in rows
    assert printed(table=print_rounding) == ''
