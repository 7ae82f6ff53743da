# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of equalized channels, chosen ranges and compensated rounding."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_ranges(console: Console, records: list[dict]) -> None:
    """Prints a line for each unit, or one for all; nothing without records.

    Args:
        console (Console): Where to.
        records (list[dict]): Fields of each ``RangeRecord``, as in the
            result file.
    """
    _print(
        console,
        'chosen ranges',
        "loss of the detector's outputs; after: of all ranges jointly; "
        'evaluations of it',
        ('unit',),
        ('exponent', 'loss', 'after', 'evaluations'),
        [
            (
                r['unit'],
                f'{r["exponent"]:.3g}',
                f'{r["loss"]:.4g}',
                _or_dash(r['after'], '.4g'),
                str(r['evaluations']),
            )
            for r in records
        ],
    )


def print_rounding(console: Console, records: list[dict]) -> None:
    """Prints a line for each layer; nothing without records.

    Args:
        console (Console): Where to.
        records (list[dict]): Fields of each ``RoundingRecord``, as in the
            result file.
    """
    _print(
        console,
        'compensated rounding',
        "mean squared error of a layer's output over that output's mean "
        'square: weights rounded to the nearest values, and rounded here; '
        'correction: share towards the float output',
        ('layer',),
        ('nearest', 'here', 'correction'),
        [
            (
                r['unit'],
                f'{r["before"]:.3g}',
                f'{r["after"]:.3g}',
                f'{r["share"]:.0%}',
            )
            for r in records
        ],
    )


def print_equalization(console: Console, records: list[dict]) -> None:
    """Prints a line for each scaling; nothing without records.

    Args:
        console (Console): Where to.
        records (list[dict]): Fields of each ``EqualizationRecord``, as in
            the result file.
    """
    _print(
        console,
        'equalized channels',
        'ratio: largest factor over the smallest; mean squared error of '
        "quantized outputs over the outputs' mean square",
        ('made -> read', 'kind', 'by'),
        ('alpha', 'ratio', 'before', 'after'),
        [
            (
                r['unit'],
                r['kind'],
                r['by'] or 'left',
                f'{r["alpha"]:g}' if r['by'] else '-',
                f'{r["ratio"]:.3g}',
                _or_dash(r['before'], '.3g'),
                _or_dash(r['after'], '.3g'),
            )
            for r in records
        ],
    )


def _print(
    console: Console,
    title: str,
    caption: str,
    words: Sequence[str],
    numbers: Sequence[str],
    rows: Iterable[tuple[str, ...]],
) -> None:
    """A table of columns of words, then of numbers, if it has a row."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD)
    for i, column in enumerate(words):
        table.add_column(column, no_wrap=i == 0)
    for column in numbers:
        table.add_column(column, justify='right', no_wrap=True)
    for row in rows:
        table.add_row(*row)
    if table.row_count:
        console.print(table)


def _or_dash(value: float | None, form: str) -> str:
    return '-' if value is None else f'{value:{form}}'
