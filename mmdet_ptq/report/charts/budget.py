# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where the bits of a detector go."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..markup import Html
from ..svg import WIDTH, box, chart, label, legend, line, scale, upright
from .network import bits_class, bits_name

#: (layer, part, bits, elements)
Bar = tuple[str, str, float, int]
#: bits that what is float is drawn with
TOP = 9


def budget(cost: Mapping[str, Any], title: str) -> Html:
    """A bar for each weight and each input, in the order in which they run.

    Its height are its bits and its width the share of all weights, or of all
    numbers that layers read, so that areas are the bits of the whole.

    Args:
        cost (Mapping): From :func:`mmdet_ptq.cost.cost_of`.
        title (str): Of the chart, for those who do not see it.
    """
    panels = dict(weights=_bars(cost, True), inputs=_bars(cost, False))
    every = sorted({b for bars in panels.values() for _, _, b, _ in bars})
    names = {bits_class(b): bits_name(round(b)) for b in every}
    found, top = [], 0.0
    markup, top = legend([*names.items()], 0)
    found.append(markup)
    for what, bars in panels.items():
        if bars:
            found += _panel(what, bars, top)
            top += 166
    return chart(title, top, *found)


def _bars(cost: Mapping[str, Any], weights: bool) -> list[Bar]:
    return [
        (layer, one['part'], bits, count)
        for layer, one in cost['layers'].items()
        for bits, (tensor, count) in zip(
            one['bits'], one['elements'].items(), strict=True
        )
        if count and weights == (tensor == 'weight')
    ]


def _panel(what: str, bars: Sequence[Bar], top: float) -> list[Html]:
    total = sum(count for *_, count in bars)
    mean = sum(bits * count for _, _, bits, count in bars) / total
    x = scale(0, total, 28, WIDTH - 6)
    high, low = top + 36, top + 136
    y = scale(0, TOP, low, high)
    found = upright(y, [0, 2, 4, 6, 8], 28, WIDTH - 6, '')
    title = f'{what}: {mean:.2f} bits on average'
    found.append(label(2, top + 12, title, cls='axis'))
    at, start = 0, 0
    for i, (name, part, bits, count) in enumerate(bars):
        height = y(min(bits, TOP))
        share = f'{100 * count / total:.2g} % of all'
        hint = f'{name}: {bits_name(bits)}, {share}'
        width = x(at + count) - x(at)
        gap = 0.4 if width > 2 else 0
        found.append(
            box(
                x(at),
                height,
                width - gap,
                low - height,
                bits_class(bits),
                hint,
            )
        )
        at += count
        if i + 1 == len(bars) or bars[i + 1][1] != part:
            found += _part(part, x(start), x(at), high, low)
            start = at
    text = f'share of all {total / 1e6:,.3g} million, in execution order'
    found.append(label(WIDTH / 2, low + 14, text, 'middle', 'axis'))
    return found


def _part(
    part: str, left: float, right: float, top: float, low: float
) -> list[Html]:
    """The end of a part, and its name where there is room."""
    found = [line(right, top, right, low, 'part')]
    if right - left > 5.6 * len(part):
        found.append(
            label((left + right) / 2, top - 3, part, 'middle', 'tick')
        )
    return found
