# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What auto mode tried, as one HTML page."""

from collections.abc import Mapping, Sequence
from typing import Any

from .charts import points
from .markup import Html, figure, num, paragraph, table, tag
from .page import document


def auto_page(
    title: str,
    goal: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    whole: Mapping[str, Any],
    told: Sequence[str],
    config: str,
) -> str:
    """The page of one search.

    Args:
        title (str): The goal in words.
        goal (Mapping): ``kind`` and ``limit``.
        trials (Sequence[Mapping]): ``title``, ``recipe``, ``mixed``,
            ``metric``, ``drop``, ``mb``, ``bops``, ``seconds`` and
            ``within`` (a word) of each, in the order in which they were
            tried.
        whole (Mapping): ``mb``, ``bops``, ``metric`` and ``value`` of the
            float detector.
        told (Sequence[str]): What came of it, in sentences.
        config (str): The chosen ``quant_cfg`` as Python.

    Returns:
        str: The text of the file.
    """
    size = goal['kind'] == 'target_size'
    key, unit, word = ('mb', 1.0, 'MB') if size else ('bops', 1e9, 'G BOPs')
    recipes = list(dict.fromkeys(_series(t) for t in trials))
    dots = [
        (
            t['title'],
            t[key] / unit,
            t['metric'],
            recipes.index(_series(t)),
        )
        for t in trials
    ]
    least = whole['value'] - goal['limit'] if _drops(goal) else None
    chart = figure(
        f'{whole["metric"]} and {word} of what was tried.',
        'A line joins what nothing beats in both. '
        + (
            f'The level one is the goal, {num(least)}. '
            if least is not None
            else ''
        )
        + f'Float: {num(whole["value"])}, '
        f'{num(whole[key] / unit, ".3g")} {word}.',
        points(
            'metric and cost',
            dots,
            recipes,
            (word, str(whole['metric'])),
            front([(x, y) for _, x, y, _ in dots]),
            least,
        ),
    )
    head = tag('header', tag('h1', title), *map(paragraph, told))
    parts = [
        tag('section', tag('h2', 'What was tried'), chart, id='chart'),
        tag('section', tag('h2', 'In numbers'), _table(trials), id='table'),
        tag(
            'section',
            tag('h2', 'The config'),
            tag('pre', config),
            id='config',
        ),
    ]
    return document(f'Auto: {title}', head, tag('main', *parts))


def _drops(goal: Mapping[str, Any]) -> bool:
    return bool(goal['kind'] == 'max_drop')


def _series(trial: Mapping[str, Any]) -> str:
    return f'{trial["recipe"]}, mixed' if trial['mixed'] else trial['recipe']


def front(
    places: Sequence[tuple[float, float]],
) -> list[tuple[float, float]]:
    """Those that no other beats: cheaper, or higher, than all others.

    Args:
        places (Sequence[tuple[float, float]]): Cost and height.

    Returns:
        list[tuple[float, float]]: From the cheapest on.
    """
    found: list[tuple[float, float]] = []
    for cost, height in sorted(places, key=lambda p: (p[0], -p[1])):
        if not found or height > found[-1][1]:
            found.append((cost, height))
    return found


def _table(trials: Sequence[Mapping[str, Any]]) -> Html:
    head = ['tried', 'within', 'points lost', 'MB', 'G BOPs', 'seconds']
    rows = [
        [
            t['title'],
            t['within'],
            num(100 * t['drop'], '.2f'),
            num(t['mb'], '.3f'),
            num(t['bops'] / 1e9, '.4g'),
            num(t['seconds'], '.0f'),
        ]
        for t in trials
    ]
    return table(head, rows, words=2)
