# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Drawing: scales, ticks and the frame of a chart.

Charts are 400 units wide, as wide as a phone; text is 11 units high.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

from .markup import Html, tag

WIDTH = 400


def scale(low: float, high: float, start: float, end: float) -> Any:
    """A function that puts ``low`` at ``start`` and ``high`` at ``end``."""
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(start + (value - low) / span * (end - start), 2)

    return place


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    # as many numbers as asked for, or up to half more
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough / 1.5)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def label(
    x: float, y: float, text: Any, anchor: str = 'start', cls: str = ''
) -> Html:
    """A line of text.

    Args:
        x (float): Of its anchor.
        y (float): Of its base line.
        text (Any): Escaped.
        anchor (str): ``'start'``, ``'middle'`` or ``'end'``.
        cls (str): Further class.
    """
    return tag('text', text, x=x, y=y, text_anchor=anchor, cls=cls or None)


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Html:
    """A straight line."""
    return tag('line', x1=x1, y1=y1, x2=x2, y2=y2, cls=cls)


def box(
    x: float, y: float, width: float, height: float, cls: str, hint: str = ''
) -> Html:
    """A rectangle; the hint is shown under a pointer."""
    hint = (tag('title', hint),) if hint else ()
    return tag(
        'rect',
        *hint,
        x=round(x, 2),
        y=round(y, 2),
        width=round(max(width, 0), 2),
        height=round(max(height, 0), 2),
        cls=cls,
    )


def chart(name: str, height: float, *parts: Any) -> Html:
    """The drawing itself.

    Args:
        name (str): What it shows, for those who do not see it.
        height (float): In units.
        *parts (Any): Its markup.
    """
    return tag(
        'svg',
        *parts,
        viewBox=f'0 0 {WIDTH} {round(height)}',
        role='img',
        aria_label=name,
    )


def picture(drawing: Html, title: str, style: Html) -> Html:
    """A drawing as a file of its own, with its title on top.

    Args:
        drawing (Html): From :func:`chart`.
        title (str): The line above it.
        style (Html): The style sheet.
    """
    size = re.match(r'<svg[^>]*viewBox="0 0 (\d+) (\d+)"', drawing)
    if size is None:
        raise ValueError('the drawing is not from chart()')
    width, height = int(size[1]) + 20, int(size[2]) + 40
    paper = tag('rect', width=width, height=height, style='fill: var(--paper)')
    inner = tag('svg', drawing, x=10, y=30, width=size[1], height=size[2])
    return tag(
        'svg',
        tag('title', title),
        tag('style', style),
        paper,
        label(12, 20, title),
        inner,
        xmlns='http://www.w3.org/2000/svg',
        viewBox=f'0 0 {width} {height}',
        width=2 * width,
        height=2 * height,
        font_family='sans-serif',
    )


def across(
    place: Any,
    values: Sequence[float],
    top: float,
    bottom: float,
    title: str,
    form: str = 'g',
) -> list[Html]:
    """A horizontal axis with grid lines, numbers and its title."""
    found = []
    for value in values:
        x = place(value)
        found.append(line(x, top, x, bottom, 'grid'))
        text = format(value, form).replace('-', '−')
        found.append(label(x, bottom + 13, text, 'middle', 'tick'))
    middle = (place(values[0]) + place(values[-1])) / 2
    found.append(label(middle, bottom + 28, title, 'middle', 'axis'))
    return found


def upright(
    place: Any,
    values: Sequence[float],
    left: float,
    right: float,
    title: str,
    form: str = 'g',
) -> list[Html]:
    """A vertical axis with grid lines and numbers, its title on top."""
    found = [label(2, 11, title, 'start', 'axis')]
    for value in values:
        y = place(value)
        found.append(line(left, y, right, y, 'grid'))
        text = format(value, form).replace('-', '−')
        found.append(label(left - 4, y + 4, text, 'end', 'tick'))
    return found


def short(text: Any, most: int) -> str:
    """A text that fits: its end is the most telling part of a name."""
    text = str(text)
    return text if len(text) <= most else '…' + text[1 - most :]


def legend(names: Sequence[tuple[str, str]], y: float) -> tuple[Html, float]:
    """Coloured squares with names, in as many lines as they need.

    Args:
        names (Sequence[tuple[str, str]]): Class of the colour, and name.
        y (float): Of the first line's top.

    Returns:
        tuple[Html, float]: Markup, and where it ends.
    """
    found, x = [], 4.0
    for cls, name in names:
        name = short(name, 40)
        width = 20 + 6.2 * len(name)
        if x > 4 and x + width > WIDTH:
            x, y = 4.0, y + 16
        found.append(box(x, y + 1, 10, 10, cls))
        found.append(label(x + 14, y + 10, name, cls='tick'))
        x += width + 6
    return tag('g', *found), y + 18
