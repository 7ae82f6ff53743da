# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Charts of counts: parted bars and histograms."""

from collections.abc import Sequence
from typing import Any

from ..markup import Html, is_number, join, num, tag
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


def stacked(
    name: str,
    rows: Sequence[tuple[str, Sequence[int]]],
    kinds: Sequence[tuple[str, str]],
    left: float = 120,
) -> Html:
    """Bars of 100 %, parted by kind.

    Args:
        name (str): Of the chart.
        rows (Sequence): Label, and a count for each kind.
        kinds (Sequence[tuple[str, str]]): Class of the colour, and name.
        left (float): Room for labels.
    """
    names, top = legend(kinds, 0)
    place = scale(0, 100, left, WIDTH - 14)
    bottom = top + 20 * len(rows)
    parts = [
        names,
        *across(place, [0, 25, 50, 75, 100], top, bottom, '% of detections'),
    ]
    for i, (text, counts) in enumerate(rows):
        y, at, total = top + 20 * i + 3, 0.0, sum(counts) or 1
        parts.append(label(left - 8, y + 11, short(text, 19), 'end'))
        for (cls, kind), count in zip(kinds, counts, strict=True):
            share = 100 * count / total
            x, end = place(at), place(at + share)
            hint = f'{text}: {kind} {count} of {total} ({share:.1f} %)'
            parts.append(box(x, y, end - x, 14, cls, hint))
            at += share
    return chart(name, bottom + 34, *parts)


def columns(
    name: str,
    series: Sequence[tuple[str, Sequence[int]]],
    ends: tuple[float, float],
    axis: str,
    unit: str,
) -> Html:
    """Counts in bins, side by side where there are several series.

    Args:
        name (str): Of the chart.
        series (Sequence): Name, and counts of equal bins.
        ends (tuple[float, float]): Where the bins begin and end.
        axis (str): Title of the horizontal axis.
        unit (str): What is counted.
    """
    most = max([1, *(c for _, counts in series for c in counts)])
    bins = max([1, *(len(counts) for _, counts in series)])
    top, parts = 22.0, []
    if len(series) > 1:
        names, top = legend(
            [(f'f{i % 8}', text) for i, (text, _) in enumerate(series)], 18
        )
        top += 4
    bottom, left = top + 120, 44
    y = scale(0, most, bottom, top)
    x = scale(*ends, left, WIDTH - 14)
    parts += upright(y, ticks(0, most, 4), left, WIDTH - 14, unit)
    parts += across(x, ticks(*ends, 5), top, bottom, axis)
    if len(series) > 1:
        parts.append(names)
    width = (WIDTH - 14 - left) / bins
    for s, (_, counts) in enumerate(series):
        thin = (width - 1) / len(series)
        for i, count in enumerate(counts):
            at = left + i * width + s * thin + 0.5
            parts.append(
                box(
                    at,
                    y(count),
                    thin,
                    bottom - y(count),
                    f'f{s % 8}',
                    str(count),
                )
            )
    return chart(name, bottom + 34, *parts)


def grid_histogram(name: str, found: dict) -> Html:
    """Where values lie between the ends of their grid.

    Args:
        name (str): Of the tensor.
        found (dict): Of :meth:`GridHistogram.to_dict`.
    """
    counts = [c if is_number(c) else 0 for c in found['counts']]
    most, total = max([1, *counts]), sum(counts) or 1
    left, right, top, bottom = 44, WIDTH - 14, 22, 112
    x = scale(-1.5, 1.5, left, right)
    y = scale(0, 100 * most / total, bottom, top)
    parts = upright(
        y, ticks(0, 100 * most / total, 3), left, right, '% of values'
    )
    width = (right - left) / max(len(counts), 1)
    bins = [
        f'M{round(left + i * width, 1)} {bottom}V{y(100 * c / total)}'
        f'h{round(width, 2)}V{bottom}z'
        for i, c in enumerate(counts)
        if c
    ]
    parts.append(tag('path', d=''.join(bins), cls='f0'))
    for value in found.get('grid') or []:
        if is_number(value):
            parts.append(line(x(value), bottom, x(value), bottom + 6, 'level'))
    for end in (-1, 1):
        parts.append(line(x(end), top, x(end), bottom + 6, 'end'))
    parts += _grid_ends(x, bottom, found)
    return chart(name, bottom + 36, join(parts))


def _grid_ends(x: Any, bottom: float, found: dict) -> list[Html]:
    ends = found.get('ends')
    if ends:
        texts = [num(end, '.3g') for end in ends]
        title = 'value; lines: lowest and highest of the grid'
    else:
        texts = ['lowest', 'highest']
        title = f'place in the grid of its channel ({found["rows"]} grids)'
    return [
        label(x(-1), bottom + 18, texts[0], 'middle', 'tick'),
        label(x(1), bottom + 18, texts[1], 'middle', 'tick'),
        label(x(0), bottom + 32, title, 'middle', 'axis'),
    ]
