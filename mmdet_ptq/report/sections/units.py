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
            body = [paragraph('No pass left a record.', cls='none')]
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


#: key of the result, title, what to see, and columns: key, name and form;
#: columns of words have none and come first
TABLES: tuple[tuple[str, str, str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        'ranges',
        'Chosen ranges',
        'The loss of the detector with the ranges of an exponent, and after '
        'a search of all ranges together.',
        (
            ('exponent', 'exponent', '.3g'),
            ('loss', 'loss', '.4g'),
            ('after', 'after', '.4g'),
            ('evaluations', 'evaluations', 'd'),
        ),
    ),
    (
        'rounding',
        'Compensated rounding',
        'The error of each output over its energy, with the nearest values '
        'and with compensated ones: less is better.',
        (
            ('before', 'nearest', '.3g'),
            ('after', 'compensated', '.3g'),
            ('share', 'correction', '.0%'),
        ),
    ),
    (
        'equalization',
        'Equalized channels',
        'The error of the outputs over their energy: less is better, and a '
        'ratio of 1 means that the channels stayed as they were.',
        (
            ('by', 'by', ''),
            ('ratio', 'ratio', '.3g'),
            ('before', 'before', '.3g'),
            ('after', 'after', '.3g'),
        ),
    ),
    (
        'mixing',
        'Mixed channels of attention heads',
        'The gain is the predicted error of a product as it was over that '
        'of mixed channels: 1 is no gain, more is better.',
        (('kind', 'product', ''), ('gain', 'gain', '.3g')),
    ),
    (
        'scaling',
        'Scaled inputs',
        'The error of the outputs over that with one grid: 1 where the '
        'input kept one grid, less is better.',
        (('error', 'error', '.3g'), ('strength', 'strength', '.2g')),
    ),
    (
        'reparametrization',
        'Channels behind a norm, brought to one grid',
        'The ratio is the largest scale of a channel over the smallest: the '
        'larger it is, the more one grid for all of them would have lost. '
        'Free: the norm itself scales them.',
        (
            ('norm', 'norm', ''),
            ('free', 'free', ''),
            ('ratio', 'ratio', '.3g'),
        ),
    ),
    (
        'noise',
        'Fixed noise on inputs',
        'The error of the outputs over that without noise: 1 where the '
        'input got none, less is better.',
        (('amplitude', 'amplitude', '.3g'), ('error', 'error', '.3g')),
    ),
    (
        'search',
        'Searched scales',
        'The loss before and after the search of each quantizer: where both '
        'are the same, its scale stayed.',
        (
            ('tensor', 'tensor', ''),
            ('before', 'before', '.4g'),
            ('after', 'after', '.4g'),
        ),
    ),
    (
        'budget',
        'Budgets of bits',
        'Distances from the float detector, as predicted and as measured: '
        'the choice is worth it where that with one width is larger.',
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
        'Allocated bits',
        'The bits that each tensor, or group of its channels, got.',
        (
            ('tensor', 'tensor', ''),
            ('group', 'group', 'd'),
            ('elements', 'elements', ',d'),
            ('bits', 'bits', 'd'),
        ),
    ),
    (
        'groups',
        'Numbers of grids',
        'How many grids the channels of an input get in each image.',
        (('port', 'input', ''), ('groups', 'grids', 'd')),
    ),
)


def _others(run: Run) -> list[Html]:
    found = []
    for key, title, see, columns in TABLES:
        records = run.part(key) or []
        if records:
            rows = [
                [one['unit'], *(_cell(one[k], form) for k, _, form in columns)]
                for one in records
            ]
            head = ['unit', *(name for _, name, _ in columns)]
            words = 1 + sum(not form for *_, form in columns)
            found.append(
                details(
                    f'{title} ({len(records)})',
                    paragraph(see),
                    table(head, rows, words),
                )
            )
    return found


def _cell(value: object, form: str) -> str:
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    return num(value, form)
