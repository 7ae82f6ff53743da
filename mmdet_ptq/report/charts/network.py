# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Charts of layers in the order in which they run."""

from collections.abc import Sequence
from typing import Any

from ..markup import Html, is_number, tag
from ..svg import (
    WIDTH,
    across,
    box,
    chart,
    label,
    legend,
    line,
    scale,
    short,
    ticks,
    upright,
)


def lines(
    name: str,
    series: Sequence[tuple[str, Sequence[float | None]]],
    parts_of: Sequence[str],
    unit: str,
    lowest: float | None = None,
) -> Html:
    """A value for each layer in execution order, the parts marked.

    Args:
        name (str): Of the chart.
        series (Sequence): Name, and a value for each layer.
        parts_of (Sequence[str]): Part of the detector of each layer.
        unit (str): Title of the vertical axis.
        lowest (float, optional): Where the axis has to begin at least.
    """
    known = [v for _, values in series for v in values if is_number(v)]
    ends = [lowest] if lowest is not None else []
    low = min([*known, *ends], default=0)
    high = max([*known, *ends], default=1)
    if not high > low:
        high = low + 1
    top, names = 22.0, Html('')
    if len(series) > 1:
        names, top = legend(
            [(f'f{i % 8}', text) for i, (text, _) in enumerate(series)], 18
        )
        top += 4
    top += 14
    bottom, left = top + 150, 44
    count = max([1, len(parts_of), *(len(v) for _, v in series)])
    x = scale(0, count, left, WIDTH - 10)
    y = scale(low, high, bottom, top)
    found = [names, *bands(parts_of, x, top, bottom)]
    found += upright(y, ticks(low, high, 5), left, WIDTH - 10, unit)
    marks = [v for v in ticks(0, count, 5) if v == int(v)]
    found += across(x, marks, bottom, bottom, 'layers, as they run')
    for s, (_, values) in enumerate(series):
        found.append(_path(x, y, values, s))
    return chart(name, bottom + 34, *found)


def bands(
    parts_of: Sequence[str], x: Any, top: float, bottom: float
) -> list[Html]:
    """Parts of the detector behind a chart of its layers."""
    found, start = [], 0
    for i in range(1, len(parts_of) + 1):
        if i < len(parts_of) and parts_of[i] == parts_of[start]:
            continue
        left, right = x(start), x(i)
        if start:
            found.append(line(left, top, left, bottom, 'part'))
        text = str(parts_of[start])
        if right - left > 5.6 * len(text):
            found.append(
                label((left + right) / 2, top - 3, text, 'middle', 'tick')
            )
        start = i
    return found


def _path(x: Any, y: Any, values: Sequence[float | None], series: int) -> Html:
    """A line through what is known, broken where nothing is; dots alone."""
    found, pen = [], 'M'
    for i, value in enumerate(values):
        if not is_number(value):
            pen = 'M'
            continue
        at = f'{x(i + 0.5)} {y(value)}'
        # a stroke of no length is a dot
        found.append(f'M{at}h0' if pen == 'M' else f'L{at}')
        pen = 'L'
    return tag('path', d=''.join(found), cls=f's{series % 8} curve')


def strip(
    name: str,
    rows: Sequence[tuple[str, Sequence[Any]]],
    parts_of: Sequence[str],
    hints: Sequence[str],
) -> Html:
    """A cell for each layer in each row, coloured by its bits.

    Args:
        name (str): Of the chart.
        rows (Sequence): Label, and bits of each layer.
        parts_of (Sequence[str]): Part of the detector of each layer.
        hints (Sequence[str]): What a pointer shows.
    """
    every = sorted({b for _, bits in rows for b in bits if is_number(b)})
    # what is mean bits of several widths has the colour of the nearest
    found = {bits_class(b): bits_name(round(b)) for b in every}
    names, top = legend([*found.items()], 0)
    top, left = top + 16, 82
    x = scale(0, max(len(parts_of), 1), left, WIDTH - 10)
    bottom = top + 30 * len(rows)
    found = [names, *bands(parts_of, x, top, bottom)]
    for r, (text, bits) in enumerate(rows):
        y = top + 30 * r + 2
        found.append(label(left - 6, y + 17, short(text, 13), 'end'))
        for i, one in enumerate(bits):
            if is_number(one):
                width = x(i + 1) - x(i)
                gap = 0.6 if width > 3 else 0
                hint = f'{hints[i]}: {bits_name(one)}'
                found.append(
                    box(x(i), y, width - gap, 26, bits_class(one), hint)
                )
    marks = [v for v in ticks(0, len(parts_of), 5) if v == int(v)] or [0]
    found += across(x, marks, bottom, bottom, 'layers, as they run')
    return chart(name, bottom + 34, *found)


def bits_class(bits: float) -> str:
    """Class of the colour of a bit-width."""
    return 'bfloat' if bits > 16 else f'b{min(round(bits), 8)}'


def bits_name(bits: float) -> str:
    """A bit-width in words."""
    return 'float' if bits > 16 else f'{bits:.3g} bits'
