# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Tables of chosen ranges and of compensated rounding."""

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
    if not records:
        return
    table = Table(
        title='chosen ranges',
        caption=(
            "loss of the detector's outputs; after: of all ranges jointly; "
            'evaluations of it'
        ),
        box=SIMPLE_HEAD,
    )
    table.add_column('unit', no_wrap=True)
    for column in ('exponent', 'loss', 'after', 'evaluations'):
        table.add_column(column, justify='right', no_wrap=True)
    for r in records:
        after = '-' if r['after'] is None else f'{r["after"]:.4g}'
        table.add_row(
            r['unit'],
            f'{r["exponent"]:.3g}',
            f'{r["loss"]:.4g}',
            after,
            str(r['evaluations']),
        )
    console.print(table)


def print_rounding(console: Console, records: list[dict]) -> None:
    """Prints a line for each layer; nothing without records.

    Args:
        console (Console): Where to.
        records (list[dict]): Fields of each ``RoundingRecord``, as in the
            result file.
    """
    if not records:
        return
    table = Table(
        title='compensated rounding',
        caption=(
            "mean squared error of a layer's output over that output's mean "
            'square: weights rounded to the nearest values, and rounded here; '
            'correction: share towards the float output'
        ),
        box=SIMPLE_HEAD,
    )
    table.add_column('layer', no_wrap=True)
    for column in ('nearest', 'here', 'correction'):
        table.add_column(column, justify='right', no_wrap=True)
    for r in records:
        table.add_row(
            r['unit'],
            f'{r["before"]:.3g}',
            f'{r["after"]:.3g}',
            f'{r["share"]:.0%}',
        )
    console.print(table)


def print_equalization(console: Console, records: list[dict]) -> None:
    """Prints a line for each scaling; nothing without records.

    Args:
        console (Console): Where to.
        records (list[dict]): Fields of each ``EqualizationRecord``, as in
            the result file.
    """
    if not records:
        return
    table = Table(
        title='equalized channels',
        caption=(
            'ratio: largest factor over the smallest; mean squared error of '
            "quantized outputs over the outputs' mean square"
        ),
        box=SIMPLE_HEAD,
    )
    table.add_column('made -> read', no_wrap=True)
    table.add_column('kind')
    table.add_column('by')
    for column in ('alpha', 'ratio', 'before', 'after'):
        table.add_column(column, justify='right', no_wrap=True)
    for r in records:
        errors = (r['before'], r['after'])
        table.add_row(
            r['unit'],
            r['kind'],
            r['by'] or 'left',
            f'{r["alpha"]:g}' if r['by'] else '-',
            f'{r["ratio"]:.3g}',
            *('-' if e is None else f'{e:.3g}' for e in errors),
        )
    console.print(table)
