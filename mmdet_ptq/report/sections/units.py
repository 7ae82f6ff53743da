# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What passes did to units and layers, and what they put back."""

from collections.abc import Sequence

from ..files import Run
from ..markup import Html, details, is_number, join, num, paragraph, table, tag
from .words import labels


def units(runs: Sequence[Run]) -> Html:
    """Units that were learned, and tables of what other passes report."""
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        body = [*_learned(run), *_others(run)]
        if not body:
            body = [
                paragraph(
                    'No pass of this recipe learns or chooses unit by unit: '
                    'nothing was put back.',
                    cls='none',
                )
            ]
        title = [tag('h3', name)] if len(runs) > 1 else []
        found += [*title, *body]
    return join(found)


def _learned(run: Run) -> list[Html]:
    records = run.part('reconstruction') or []
    if not records:
        return []
    back = [one for one in records if not one['kept']]
    words = (
        f'{len(records)} units were learned; {len(back)} of them were put '
        'back, because their loss on held-out images did not fall.'
    )
    head = ['unit', 'loss before', 'after', 'change', 'seconds', 'kept']

    def row(one: dict) -> list:
        before, after = one['before'], one['after']
        share = None
        if is_number(before) and is_number(after) and before:
            share = 100 * (after / before - 1)
        kept = 'yes' if one['kept'] else f'no: {one["why"]}'
        return [
            one['unit'],
            num(before, '.4g'),
            num(after, '.4g'),
            num(share, '+.1f') + ' %',
            num(one['seconds'], '.1f'),
            kept,
        ]

    found = [paragraph(words)]
    if back:
        found.append(table(head, map(row, back)))
    every = details('All units', table(head, map(row, records)))
    return [*found, every]


#: key of the result, title, and columns: name, key and form
TABLES = (
    (
        'ranges',
        'Chosen ranges',
        (
            ('exponent', 'exponent', '.3g'),
            ('loss', 'loss', '.4g'),
            ('after', 'after', '.4g'),
            ('evaluations', 'evaluations', 'd'),
        ),
    ),
    (
        'rounding',
        'Compensated rounding: error of the output over its energy',
        (
            ('before', 'nearest', '.3g'),
            ('after', 'compensated', '.3g'),
            ('share', 'correction', '.0%'),
        ),
    ),
    (
        'equalization',
        'Equalized channels: error of the outputs over their energy',
        (
            ('by', 'by', ''),
            ('ratio', 'ratio', '.3g'),
            ('before', 'before', '.3g'),
            ('after', 'after', '.3g'),
        ),
    ),
    (
        'scaling',
        'Scaled inputs: error over that with one grid, 1 where none was made',
        (('error', 'error', '.3g'), ('strength', 'strength', '.2g')),
    ),
    (
        'budget',
        'Budgets of bits, and distances from the float detector',
        (
            ('cost', 'of', ''),
            ('budget', 'budget', '.4g'),
            ('spent', 'spent', '.4g'),
            ('least', 'fewest bits', 'd'),
            ('most', 'most bits', 'd'),
            ('predicted', 'predicted', '.3g'),
            ('measured', 'measured', '.3g'),
            ('uniform', 'with one width', '.3g'),
        ),
    ),
    (
        'allocation',
        'Bits that tensors and groups of channels got',
        (
            ('tensor', 'tensor', ''),
            ('group', 'group', 'd'),
            ('elements', 'elements', ',d'),
            ('bits', 'bits', 'd'),
        ),
    ),
)


def _others(run: Run) -> list[Html]:
    found = []
    for key, title, columns in TABLES:
        records = run.part(key) or []
        if records:
            rows = [
                [one['unit'], *(num(one[k], form) for k, _, form in columns)]
                for one in records
            ]
            head = ['unit', *(name for _, name, _ in columns)]
            summary = f'{title} ({len(records)})'
            found.append(details(summary, table(head, rows)))
    return found
