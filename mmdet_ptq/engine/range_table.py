# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The table of ranges that were chosen by the detector's outputs."""

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
