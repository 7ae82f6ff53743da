# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Charts of numbers: dots with whiskers, and bars."""

from collections.abc import Sequence
from typing import Any

from ..markup import Html, is_number, num, tag
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
)

Interval = tuple[float | None, float | None, float | None]
"""Value, lower and upper end"""


def intervals(
    name: str,
    rows: Sequence[tuple[str, Sequence[Interval]]],
    series: Sequence[str],
    axis: str,
    left: float = 120,
) -> Html:
    """Dots with whiskers, a row for each question, zero marked.

    Args:
        name (str): Of the chart.
        rows (Sequence): Label, and an interval for each series.
        series (Sequence[str]): Names.
        axis (str): Title of the axis, with its unit.
        left (float): Room for labels.
    """
    known = [v for _, r in rows for i in r for v in i if is_number(v)]
    low, high = min([0.0, *known]), max([0.0, *known])
    room = (high - low) * 0.05 or 0.01
    place = scale(low - room, high + room, left, WIDTH - 10)
    step, parts = 8 + 10 * len(series), []
    top = 4.0
    if len(series) > 1:
        names, top = legend(
            [(f'f{i % 8}', text) for i, text in enumerate(series)], 0
        )
        parts.append(names)
    bottom = top + step * len(rows) + 2
    marks = ticks(low - room, high + room, 4)
    parts += across(place, marks, top, bottom, axis)
    parts.append(line(place(0), top, place(0), bottom, 'zero'))
    for i, (text, found) in enumerate(rows):
        middle = top + step * i + step / 2
        parts.append(label(left - 8, middle + 4, short(text, 19), 'end'))
        for s, interval in enumerate(found):
            y = middle + 10 * (s - (len(found) - 1) / 2)
            parts.append(_whisker(place, y, interval, s))
    return chart(name, bottom + 34, *parts)


def _whisker(place: Any, y: float, interval: Interval, series: int) -> Html:
    value, low, high = interval
    if not is_number(value):
        return Html('')
    parts = []
    if is_number(low) and is_number(high):
        parts.append(
            line(place(low), y, place(high), y, f's{series % 8} whisker')
        )
    hint = f'{num(value, "+.4f")} ({num(low, "+.4f")} to {num(high, "+.4f")})'
    dot = tag(
        'circle',
        tag('title', hint),
        cx=place(value),
        cy=y,
        r=3.5,
        cls=f'f{series % 8}',
    )
    return tag('g', *parts, dot)


def bars(
    name: str, rows: Sequence[tuple[str, float]], axis: str, left: float = 130
) -> Html:
    """Horizontal bars, their values written at their ends."""
    values = [v for _, v in rows if is_number(v)]
    place = scale(0, max([*values, 1e-9]), left, WIDTH - 52)
    bottom = 4 + 20 * len(rows)
    marks = ticks(0, max([*values, 1e-9]), 4)
    found = across(place, marks, 4, bottom, axis)
    for i, (text, value) in enumerate(rows):
        y = 4 + 20 * i + 3
        found.append(label(left - 8, y + 11, short(text, 21), 'end'))
        if is_number(value):
            end = place(value)
            found.append(box(left, y, end - left, 14, 'f0'))
            found.append(label(end + 4, y + 11, num(value, '.3g'), cls='tick'))
    return chart(name, bottom + 34, *found)


def paired(
    name: str,
    rows: Sequence[tuple[str, Sequence[float | None]]],
    series: Sequence[str],
    axis: str,
    left: float = 150,
) -> Html:
    """Horizontal bars, one below the other for each series of a row.

    Args:
        name (str): Of the chart.
        rows (Sequence): Label, and a value for each series; bars of values
            below 0 go to the left.
        series (Sequence[str]): Names.
        axis (str): Title of the axis, with its unit.
        left (float): Room for labels.
    """
    known = [v for _, values in rows for v in values if is_number(v)]
    low, high = min([0.0, *known]), max([1e-9, *known])
    place = scale(low, high, left, WIDTH - 12)
    names, top = legend(
        [(f'f{i % 8}', text) for i, text in enumerate(series)], 0
    )
    step = 6 + 8 * len(series)
    bottom = top + step * len(rows)
    found = [names, *across(place, ticks(low, high, 4), top, bottom, axis)]
    for i, (text, values) in enumerate(rows):
        y = top + step * i + 3
        middle = y + 4 * len(series) + 4
        found.append(label(left - 8, middle, short(text, 23), 'end'))
        for s, value in enumerate(values):
            if is_number(value):
                ends = sorted((place(0), place(value)))
                hint = f'{text}, {series[s]}: {num(value, ".4g")}'
                width = ends[1] - ends[0]
                cls = f'f{s % 8}'
                found.append(box(ends[0], y + 8 * s, width, 7, cls, hint))
    return chart(name, bottom + 34, *found)
