# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""AP before and after, with intervals."""

from collections.abc import Sequence

from ..charts import intervals
from ..files import Run
from ..markup import (
    Html,
    details,
    figure,
    grid,
    is_number,
    join,
    num,
    paragraph,
    table,
)
from .words import absent, labels, with_part

#: classes in the chart; the table has all
SHOWN = 16
GROUPS = (
    (('all', 'overlap'), 'Average over overlaps, and at two of them'),
    (('size',), 'By size of the objects'),
    (('class',), 'By class'),
)
SIZES = dict(
    small='small, < 32² px',
    medium='medium',
    large='large, > 96² px',
)
Named = Sequence[tuple[str, Run]]
"""Names and runs"""


def accuracy(runs: Sequence[Run]) -> Html:
    """Metrics of the evaluators, then changes of box AP with intervals."""
    named = with_part(runs, 'accuracy')
    found = [metrics(runs)]
    if named:
        charts = [_chart(named, *group) for group in GROUPS]
        found += [_how(named), grid(*charts), _all(named)]
    return join([*found, *absent(runs, 'accuracy')])


def metrics(runs: Sequence[Run]) -> Html:
    """What the evaluators of the config say, float and quantized."""
    sides = ('float', 'quantized')
    keys = list(
        dict.fromkeys(k for r in runs for s in sides for k in r.part(s) or {})
    )
    if not keys:
        return paragraph('The run ended before a test: there are no metrics.')
    head = ['metric of the evaluator']
    for name in labels(runs):
        first = 'float' if len(runs) == 1 else f'{name}: float'
        head += [first, 'quantized', 'change']
    rows = []
    for key in keys:
        row = [key]
        for run in runs:
            before, after = (_known(run, side, key) for side in sides)
            both = is_number(before) and is_number(after)
            change = after - before if both else None
            row += [num(before), num(after), num(change, '+.3f')]
        rows.append(row)
    return table(head, rows)


def _known(run: Run, side: str, key: str) -> object:
    value = run.part(side, key)
    # COCO's way to say that there is no such object
    return None if value == -1 else value


def _how(named: Named) -> Html:
    run = named[0][1]
    images, whole, drawings = (
        num(run.gathered('accuracy', key), 'd')
        for key in ('images', 'of', 'drawings')
    )
    part = '' if images == whole else f', drawn by chance out of {whole}'
    asked = 'a change whose whisker crosses zero may be chance'
    if not _changes(named):
        asked = 'the float detector was not tested, so these are no changes'
    return paragraph(
        f'Below: box AP by the rules of COCO on {images} test images{part}. A '
        f'whisker holds 95 % of what comes out if the images are drawn anew '
        f'({drawings} times, the same for both detectors): {asked}. Sizes go '
        'by the area of the box.'
    )


def _changes(named: Named) -> bool:
    return any(
        is_number(row['change'])
        for _, run in named
        for row in run.gathered('accuracy', 'rows')
    )


def _rows(named: Named, groups: Sequence[str]) -> dict[str, list[dict]]:
    """Rows by name; of each the one of every run, {} where it has none."""
    found: dict[str, list[dict]] = {}
    for i, (_, run) in enumerate(named):
        for row in run.gathered('accuracy', 'rows'):
            if row['group'] in groups:
                mine = found.setdefault(row['name'], [{} for _ in named])
                mine[i] = row
    return {
        name: rows
        for name, rows in found.items()
        if any(is_number(row.get('quantized')) for row in rows)
    }


def _chart(named: Named, groups: Sequence[str], title: str) -> Html:
    rows = _rows(named, groups)
    changed = _changes(named)
    key = 'change' if changed else 'quantized'

    def worst(name: str) -> float:
        values = [row.get(key) for row in rows[name]]
        return min((v for v in values if is_number(v)), default=0.0)

    names = list(rows)
    if 'class' in groups:
        names = sorted(names, key=worst)[:SHOWN]
    drawn = [
        (
            SIZES.get(n, n) if 'size' in groups else n,
            [
                (row.get(key), row.get('low'), row.get('high'))
                for row in rows[n]
            ],
        )
        for n in names
    ]
    axis = 'change of box AP (float to quantized)' if changed else 'box AP'
    svg = intervals(title, drawn, [name for name, _ in named], axis)
    return figure(title + '.', _see(rows, names, changed, groups), svg)


def _see(
    rows: dict[str, list[dict]],
    names: Sequence[str],
    changed: bool,
    groups: Sequence[str],
) -> str:
    """What to see, in one sentence."""
    if not names:
        return 'No test image has such an object.'
    if not changed:
        return 'Dots are the AP of the quantized detector.'
    sure = [
        name
        for name in names
        if any(is_number(r.get('high')) and r['high'] < 0 for r in rows[name])
    ]
    what = 'Dots left of the line are losses'
    if 'class' in groups and len(rows) > len(names):
        what += f' (the {len(names)} worst of {len(rows)} classes)'
    if not sure:
        return f'{what}; none is beyond chance.'
    if len(sure) == len(names):
        return f'{what}; all are beyond chance.'
    told = ', '.join(map(str, sure[:6]))
    more = '' if len(sure) <= 6 else f' and {len(sure) - 6} more'
    return f'{what}; beyond chance: {told}{more}.'


def _all(named: Named) -> Html:
    tables = []
    for name, run in named:
        rows = [
            [
                row['name'] if row['group'] != 'size' else SIZES[row['name']],
                num(row['objects'], ',d'),
                num(row['float']),
                num(row['quantized']),
                num(row['change'], '+.3f'),
                f'{num(row["low"], "+.3f")} to {num(row["high"], "+.3f")}',
            ]
            for row in run.gathered('accuracy', 'rows')
        ]
        head = ['', 'objects', 'float', 'quantized', 'change', '95 %']
        title = [paragraph(name)] if len(named) > 1 else []
        tables += [*title, table(head, rows)]
    return details('All numbers of these charts', *tables)
