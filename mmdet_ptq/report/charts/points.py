# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Charts of two numbers each: dots, and steps between the best of them."""

from collections.abc import Sequence
from typing import Any

from ..markup import Html, is_number, num, tag
from ..svg import WIDTH, across, chart, legend, line, scale, ticks, upright

Dot = tuple[str, float, float, int]
"""Hint, both numbers, and which series it is of"""


def points(
    name: str,
    dots: Sequence[Dot],
    series: Sequence[str],
    axes: tuple[str, str],
    front: Sequence[tuple[float, float]] = (),
    least: float | None = None,
) -> Html:
    """Dots by two numbers.

    Args:
        name (str): Of the chart.
        dots (Sequence): What a pointer shows, place across, place upright,
            index of its series.
        series (Sequence[str]): Names.
        axes (tuple[str, str]): Titles of both axes, with units.
        front (Sequence[tuple[float, float]]): Joined by a line.
        least (float, optional): A height that is marked.
    """
    known = [d for d in dots if is_number(d[1]) and is_number(d[2])]
    names, top = Html(''), 18.0
    if len(series) > 1:
        names, top = legend(
            [(f'f{i % 8}', text) for i, text in enumerate(series)], 18
        )
    bottom, left = top + 180, 52
    heights = [d[2] for d in known] + ([] if least is None else [least])
    x = scale(*_ends([d[1] for d in known]), left, WIDTH - 12)
    y = scale(*_ends(heights), bottom, top + 4)
    marks = [ticks(*_ends([d[1] for d in known])), ticks(*_ends(heights))]
    found = [names, *upright(y, marks[1], left, WIDTH - 12, axes[1])]
    found += across(x, marks[0] or [0], top + 4, bottom, axes[0])
    if least is not None:
        found.append(line(left, y(least), WIDTH - 12, y(least), 'zero'))
    if len(front) > 1:
        path = 'M' + 'L'.join(f'{x(a)} {y(b)}' for a, b in front)
        found.append(tag('path', d=path, cls='s7 curve'))
    found += [_dot(x, y, dot) for dot in known]
    return chart(name, bottom + 34, *found)


def _dot(x: Any, y: Any, dot: Dot) -> Html:
    text, across_, up, series = dot
    hint = f'{text}: {num(across_, ".4g")}, {num(up, ".4g")}'
    return tag(
        'circle',
        tag('title', hint),
        cx=x(across_),
        cy=y(up),
        r=3.5,
        cls=f'f{series % 8}',
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """With room on both sides, so that no dot lies on the frame."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    return low - room, high + room
