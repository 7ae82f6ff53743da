# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What became of the float detector's detections."""

from collections.abc import Sequence

from ..charts import columns, stacked
from ..files import Run
from ..markup import Html, details, figure, grid, join, num, paragraph, table
from .words import absent, with_part

FATES = ('kept', 'shifted', 'misclassified', 'faded', 'missed')
SHOWN = 16


def lost(runs: Sequence[Run]) -> Html:
    """Float detections that are kept, shifted, misclassified or missed."""
    named = with_part(runs, 'changes')
    found = []
    if named:
        charts = [_whole(named), _overlaps(named)]
        charts += [_classes(name, run, len(named)) for name, run in named]
        found = [_words(named), grid(*charts), _all(named)]
    return join([*found, *absent(runs, 'changes')])


def _words(named: Sequence[tuple[str, Run]]) -> Html:
    run = named[0][1]
    score = num(run.gathered('changes', 'score'), 'g')
    return paragraph(
        f'Each box that the float detector gives a score of {score} or more '
        f'({num(run.gathered("changes", "images"), "d")} test images) is '
        'looked for among the boxes of the quantized one. Kept: same class, '
        'IoU of 0.75 or more. Shifted: same class, IoU from 0.5 to 0.75. '
        'Misclassified: IoU of 0.5 or more, another class. Faded: same '
        f'place and class, score now below {score}. Missed: nothing there.'
    )


def _counts(found: dict) -> list[int]:
    return [found.get(fate, 0) for fate in FATES]


def _kinds() -> list[tuple[str, str]]:
    return [(f'k{i}', fate) for i, fate in enumerate(FATES)]


def _whole(named: Sequence[tuple[str, Run]]) -> Html:
    rows, words = [], []
    for name, run in named:
        counts = _counts(run.gathered('changes', 'fates'))
        rows.append((name, counts))
        total, new = sum(counts), run.gathered('changes', 'new')
        gone = counts[2] + counts[3] + counts[4]
        who = f'{name}: ' if len(named) > 1 else ''
        words.append(
            f'{who}{num(100 * counts[0] / max(total, 1), ".1f")} % of '
            f'{num(total, ",d")} boxes are kept, {num(gone, ",d")} are lost '
            f'or of another class, {num(new, ",d")} new ones appear.'
        )
    title = 'What became of each box.'
    return figure(title, ' '.join(words), stacked(title, rows, _kinds()))


def _overlaps(named: Sequence[tuple[str, Run]]) -> Html:
    series = [(name, run.gathered('changes', 'bins')) for name, run in named]
    title = 'How well the boxes agree.'
    see = (
        'A column at the right end means that the box did not move; boxes at '
        'zero have no counterpart of their class.'
    )
    svg = columns(
        title, series, (0, 1), 'IoU of float and quantized box', 'boxes'
    )
    return figure(title, see, svg)


def _classes(name: str, run: Run, many: int) -> Html:
    classes = [(c, _counts(c)) for c in run.gathered('changes', 'classes')]
    classes = [(c, counts) for c, counts in classes if sum(counts)]
    # the smallest share kept first
    classes.sort(key=lambda item: item[1][0] / sum(item[1]))
    title = f'By class{f", {name}" if many > 1 else ""}.'
    see = 'The class that keeps least is on top.'
    if len(classes) > SHOWN:
        see = f'The {SHOWN} of {len(classes)} classes that keep least.'
    rows = [(c['name'], counts) for c, counts in classes[:SHOWN]]
    return figure(title, see, stacked(title, rows, _kinds()))


def _all(named: Sequence[tuple[str, Run]]) -> Html:
    tables = []
    for name, run in named:
        rows = [
            [c['name'], *(num(c.get(k, 0), ',d') for k in (*FATES, 'new'))]
            for c in run.gathered('changes', 'classes')
        ]
        title = [paragraph(name)] if len(named) > 1 else []
        tables += [*title, table(['class', *FATES, 'new'], rows)]
    return details('All numbers of these charts', *tables)
