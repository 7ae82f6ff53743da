# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""HTML and SVG that cannot be broken by what stands in it.

Text is escaped unless it is :class:`Html`, and only functions of this file
make :class:`Html` out of text.
"""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def esc(value: Any) -> Html:
    """Markup of anything: itself if it is markup, else its escaped text."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(str(value), quote=True))


def join(parts: Iterable[Any], between: str = '') -> Html:
    """Pieces of markup and text, one after the other."""
    return Html(between.join(map(esc, parts)))


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        name (str): Of the element.
        *children (Any): Markup, or text to escape.
        **attributes (Any): ``cls`` is ``class``; ``_`` in names is ``-``.
            None leaves an attribute out.
    """
    found = ''.join(
        f' {_attribute(key)}="{esc(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f'<{name}{found}>{join(children)}</{name}>')


def _attribute(key: str) -> str:
    if key == 'cls':
        return 'class'
    return key if key == 'viewBox' else key.rstrip('_').replace('_', '-')


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def num(value: Any, form: str = '.3f') -> str:
    """A number as text; a dash for none, its own text for anything else."""
    if is_number(value):
        # no minus before a zero
        return format(value, form).replace('-', '−')
    return '–' if value is None or isinstance(value, float) else str(value)


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], words: int = 1
) -> Html:
    """A table in a box that scrolls by itself if it is too wide.

    Args:
        head (Sequence): Of the columns.
        rows (Iterable[Sequence]): Cells.
        words (int): How many columns, from the left, are words and no
            numbers. Defaults to 1.
    """
    # a table of words alone has no number that has to stay whole
    kinds = [None] * words
    if words == len(head):
        kinds[-1] = 'w'

    def line(kind: str, cells: Sequence[Any]) -> Html:
        return tag(
            'tr',
            *(
                tag(kind, cell, cls=kinds[i] if i < words else 'n')
                for i, cell in enumerate(cells)
            ),
        )

    body = tag('tbody', *(line('td', row) for row in rows))
    found = tag('table', tag('thead', line('th', head)), body)
    return tag('div', found, cls='wide')


def figure(title: str, sentence: Any, *charts: Any) -> Html:
    """A chart under its title and one sentence that says what to see."""
    caption = tag('figcaption', tag('b', title), ' ', sentence)
    return tag('figure', caption, *charts)


def details(summary: Any, *content: Any) -> Html:
    """What is seen when it is asked for; needs no script."""
    return tag('details', tag('summary', summary), *content)


def paragraph(*content: Any, cls: str | None = None) -> Html:
    """A paragraph."""
    return tag('p', *content, cls=cls)


def grid(*content: Any) -> Html:
    """Figures side by side where there is room."""
    return tag('div', *content, cls='grid')
