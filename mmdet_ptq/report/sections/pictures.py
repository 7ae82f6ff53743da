# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Images: float, quantized, and what is there."""

import re
from collections.abc import Sequence

from ..files import Run
from ..markup import Html, esc, is_number, join, num, paragraph, tag
from .words import absent, with_part

SIDES = (
    ('float', 'float'),
    ('quantized', 'quantized'),
    ('truth', 'ground truth'),
)
GOOD = ('kept', '')
BASE64 = re.compile(r'[A-Za-z0-9+/]+={0,2}')


def pictures(runs: Sequence[Run], most: int = 8) -> Html:
    """The images that changed most, the worst first.

    Args:
        runs (Sequence[Run]): Side by side.
        most (int): Pictures of all runs together. Defaults to 8.
    """
    named = with_part(runs, 'examples')
    found = []
    for r, (name, run) in enumerate(named):
        if len(named) > 1:
            found.append(tag('h3', name))
        each = run.gathered('examples')[: max(1, most // len(named))]
        found += [_row(one, f'p{r}-{i}') for i, one in enumerate(each)]
    if named:
        found.insert(0, _words(named))
    return join([*found, *absent(runs, 'examples')])


def _words(named: Sequence[tuple[str, Run]]) -> Html:
    every = [one for _, run in named for one in run.gathered('examples')]
    # where the float detector was not tested, the objects stand for it
    columns = {
        'ground truth' if one.get('float') is None else 'float'
        for one in every
    }
    return paragraph(
        'The test images with the most boxes that are not as they were, the '
        f'worst first. Boxes have a score of {num(every[0]["score"], "g")} '
        'or more. ',
        tag('b', 'Dashed red', cls='bad'),
        f': in the {" or ".join(sorted(columns))} column a box that is lost, '
        'moved or of another class; in the quantized column a box that is '
        'new.',
    )


def _row(one: dict, key: str) -> Html:
    panels = []
    for side, title in SIDES:
        if one.get(side) is None:
            continue
        boxes = one[side]
        bad = sum(box[6] not in GOOD for box in boxes)
        count = f'{title}: {len(boxes)} boxes'
        if bad:
            count += (
                f', {bad} not as they were'
                if side != 'quantized'
                else (f', {bad} new')
            )
        svg = _panel(one, boxes, key, not panels, f'{one["name"]}, {count}')
        panels.append(tag('div', svg, tag('small', count)))
    title = tag('b', one['name'])
    words = f' {num(one["lost"], "d")} boxes differ'
    if not one['picture']:
        words += '; the image file could not be read'
    return tag(
        'figure',
        tag('figcaption', title, words),
        tag('div', *panels, cls='panels'),
    )


def _panel(
    one: dict, boxes: Sequence[list], key: str, first: bool, name: str
) -> Html:
    height, width = (v if is_number(v) and v > 0 else 1 for v in one['size'])
    unit = max(width, height) / 320
    parts = []
    picture = str(one['picture'])
    if BASE64.fullmatch(picture):
        if first:
            image = tag(
                'image',
                id=key,
                href=f'data:image/jpeg;base64,{picture}',
                width=width,
                height=height,
            )
            parts.append(image)
        else:
            parts.append(tag('use', href=f'#{key}'))
    # the surest on top
    parts += [_box(box, unit) for box in reversed(boxes)]
    return tag(
        'svg',
        *parts,
        viewBox=f'0 0 {num(width, "g")} {num(height, "g")}',
        role='img',
        aria_label=name,
        cls='photo',
    )


def _box(box: list, unit: float) -> Html:
    x1, y1, x2, y2, name, score, fate = box
    if not all(map(is_number, (x1, y1, x2, y2))):
        return esc('')
    cls = 'hit' if fate in GOOD else 'miss'
    words = f'{name} {num(score, ".2f")} {fate}'
    rect = tag(
        'rect',
        tag('title', words),
        x=x1,
        y=y1,
        width=max(x2 - x1, 0),
        height=max(y2 - y1, 0),
        cls=cls,
        stroke_width=round(2 * unit, 2),
        stroke_dasharray=None if cls == 'hit' else f'{6 * unit} {3 * unit}',
    )
    text = tag(
        'text',
        name,
        x=x1 + 2 * unit,
        y=max(y1 - 3 * unit, 11 * unit),
        font_size=round(12 * unit, 2),
        stroke_width=round(3 * unit, 2),
        cls=cls,
    )
    return join([rect, text])
