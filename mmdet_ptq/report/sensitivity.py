# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What layers and parts lose, as one HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..passes.measure_sensitivity import SCORES
from .charts import lines, paired, points
from .markup import (
    Html,
    details,
    figure,
    grid,
    is_number,
    num,
    paragraph,
    table,
    tag,
)
from .page import document

#: how many layers the chart has at most
MOST = 40


def sensitivity_page(
    found: Mapping[str, Any],
    score: str,
    rows: Sequence[Mapping[str, Any]],
    rules: str,
) -> str:
    """The page of one measurement.

    Args:
        found (Mapping): Content of ``sensitivity.json``.
        score (str): By which score it is sorted.
        rows (Sequence[Mapping]): Of each part, the worst first: ``name``,
            ``role`` (whether it is all layers of a role), ``weight``,
            ``act``, ``spared_weight``, ``spared_act``.
        rules (str): The suggestion as Python; '' if there is none.

    Returns:
        str: The text of the file.
    """
    about = found['about']
    title = f'Sensitivity: {about.get("title", "")}'
    layers = [row for row in rows if not row['role']]
    roles = [row for row in rows if row['role']]
    kept = _suggested(found, score, rules)
    parts = [
        _section('layers', 'What layers lose', _scores(layers, score)),
        _section('parts', 'What parts lose', _scores(roles, score)),
        _section('suggestion', 'What to keep', *kept),
        _section('errors', 'Errors made and received', _errors(found)),
        _section('check', 'Is the cheap score right?', _check(found, score)),
        _section('table', 'All of it', _table(rows)),
    ]
    head = [
        tag('h1', title),
        paragraph(f'{about.get("config", "")}, {about.get("path", "")}'),
        paragraph(
            f'Score: {score}, {SCORES[score]}; 0 is the float detector, more '
            f'is worse. All quantized: {num(_whole(found, score), ".4g")}.'
        ),
    ]
    return document(title, tag('header', *head), tag('main', *parts))


def _section(key: str, title: str, *content: Html) -> Html:
    return tag('section', tag('h2', title), *content, id=key)


def _whole(found: Mapping[str, Any], score: str) -> Any:
    return found['scores'][score]['all']['score']


def _scores(rows: Sequence[Mapping[str, Any]], score: str) -> Html:
    if not rows:
        return paragraph('There are none.', cls='none')
    shown = rows[:MOST]
    worst = shown[0]['name']
    more = f' The worst {MOST} of {len(rows)}.' if len(rows) > MOST else ''
    names = ('weights', 'inputs')
    axis = f'{score}: {SCORES[score]}'
    return grid(
        figure(
            'One quantized, all others float.',
            f'{worst} loses most.{more}',
            paired(
                'score of each alone',
                [(r['name'], (r['weight'], r['act'])) for r in shown],
                names,
                axis,
            ),
        ),
        figure(
            'One float, all others quantized.',
            'What is gained by leaving it float.',
            paired(
                'gain by each',
                [
                    (r['name'], (r['spared_weight'], r['spared_act']))
                    for r in shown
                ],
                names,
                axis,
            ),
        ),
    )


def _suggested(found: Mapping[str, Any], score: str, rules: str) -> list[Html]:
    one = found.get('suggestion', {}).get(score)
    if not one or not rules:
        return [paragraph('No layer loses anything.', cls='none')]
    return [paragraph(suggested_words(one, score)), tag('pre', rules)]


def suggested_words(one: Mapping[str, Any], score: str) -> str:
    """A suggestion and what came of it, if it was tried, in a sentence.

    Args:
        one (Mapping): A part of ``suggestion`` of ``sensitivity.json``.
        score (str): By which score.
    """
    words = f'{one["words"][0].upper()}{one["words"][1:]}'
    if 'failed' in one:
        return f'{words}: this was tried, and failed ({one["failed"]})'
    if 'after' not in one:
        return f'{words}: this was not tried to the end'
    change = _change(one['before'], one['after'])
    size = _change(one['mb_before'], one['mb_after'])
    return f'{words}: {score} score {change}, size {size}'


def _change(before: float, after: float) -> str:
    if not before:
        return f'{num(before, ".3g")} to {num(after, ".3g")}'
    return f'{num(100 * (after / before - 1), "+.0f")} %'


def _errors(found: Mapping[str, Any]) -> Html:
    layers = found.get('layers') or {}
    if not layers:
        return paragraph('They were not measured.', cls='none')
    kinds = (('made', 'own'), ('received', 'received'), ('given on', 'total'))
    series = [
        (words, [_percent(one.get(key)) for one in layers.values()])
        for words, key in kinds
    ]
    names = [name.partition('.')[0] for name in layers]
    return figure(
        'The error that a layer makes, beside the one that it is given.',
        'Squared error of its output over the squares of the float output. '
        'Made: on the input of the float detector. Received: in float, on '
        'the input of the quantized one.',
        lines('errors of layers', series, names, '% of the output', 0.0),
    )


def _percent(value: Any) -> float | None:
    return 100 * value if is_number(value) else None


def _check(found: Mapping[str, Any], score: str) -> Html:
    one = found.get('check', {}).get(score)
    if not one:
        return paragraph(
            'AP was not measured beside it (--check N, or --score ap).',
            cls='none',
        )
    dots = [(n, cheap, ap, 0) for n, (cheap, ap) in one['pairs'].items()]
    return figure(
        f'{score} and AP of {len(dots)} layers, each alone.',
        f'{check_words(one)}.',
        points(
            'score and AP', dots, ['layer'], (f'{score}', 'loss of the metric')
        ),
    )


def check_words(one: Mapping[str, Any]) -> str:
    """How well the cheap score ranks, in a sentence without its end.

    Args:
        one (Mapping): A part of ``check`` of ``sensitivity.json``.
    """
    count = len(one['pairs'])
    if one['spearman'] is None:
        return f'{count} layers lose the same AP, so there is no rank'
    return (
        f"Spearman's rank correlation with the loss of the metric is "
        f'{num(one["spearman"], ".2f")}, over {count} layers'
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Html:
    head = [
        'part',
        'weights alone',
        'inputs alone',
        'weights spared',
        'inputs spared',
    ]
    keys = ('weight', 'act', 'spared_weight', 'spared_act')
    cells = [
        [row['name'], *(num(row[key], '.4g') for key in keys)] for row in rows
    ]
    return details(f'{len(rows)} layers and parts', table(head, cells))
