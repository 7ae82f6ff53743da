# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a user gets of a measurement: a page, rules, and a table."""

import pprint
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..passes.measure_sensitivity import Part, ranked
from ..report import (
    check_words,
    sensitivity_page,
    suggested_words,
    write_text,
)

PAGE = 'sensitivity.html'
RULES = 'sensitivity_rules.py'
WORST = 10

Row = dict[str, Any]


def rows_of(found: Mapping[str, Any], score: str) -> list[Row]:
    """Every part with what it loses, the worst first, roles at the end.

    Args:
        found (Mapping): Content of ``sensitivity.json``.
        score (str): By which score.
    """
    scores = {k: v['score'] for k, v in found['scores'][score].items()}
    parts = [
        Part(name, tuple(layers), (), ())
        for name, layers in found['parts'].items()
    ]
    ranks = ranked([p for p in parts if not p.is_role], scores)
    ranks += ranked([p for p in parts if p.is_role], scores)
    return [
        dict(
            name=rank.part.name,
            role=rank.part.is_role,
            weight=rank.weight,
            act=rank.act,
            spared_weight=rank.spared_weight,
            spared_act=rank.spared_act,
            **_own(found, rank.part.layers),
        )
        for rank in ranks
        if rank.weight is not None or rank.act is not None
    ]


def _own(found: Mapping[str, Any], layers: Sequence[str]) -> Row:
    """The largest errors among the layers of a part."""
    known = [found.get('layers', {}).get(name, {}) for name in layers]
    return {
        kind: max(
            (one[kind] for one in known if one.get(kind) is not None),
            default=None,
        )
        for kind in ('own', 'received')
    }


def write_outputs(
    folder: Path, found: Mapping[str, Any], score: str
) -> list[str]:
    """Writes page and rules.

    Args:
        folder (Path): The work dir.
        found (Mapping): Content of ``sensitivity.json``.
        score (str): By which score it is sorted.

    Returns:
        list[str]: Sentences for the user.

    Raises:
        PTQError: If a file cannot be written.
    """
    one = found.get('suggestion', {}).get(score)
    rules = f'rules = {_spelled(one["rules"])}\n' if one else ''
    page = sensitivity_page(found, score, rows_of(found, score), rules)
    write_text(folder / PAGE, page)
    told = [f'chart of all layers and parts: {folder / PAGE}']
    if one:
        text = f'quant_cfg = {_spelled(one["quant_cfg"])}\n'
        write_text(folder / RULES, text)
        told.append(
            f'{suggested_words(one, score)}; the whole quant_cfg is in '
            f'{folder / RULES}, which --recipe takes:\n{rules}'
        )
    check = found.get('check', {}).get(score)
    if check:
        told.append(check_words(check))
    return told


def _spelled(value: Any) -> str:
    return pprint.pformat(value, sort_dicts=False, width=79)


def print_worst(
    console: Console, found: Mapping[str, Any], score: str
) -> None:
    """Prints the layers that lose most.

    Args:
        console (Console): Where to.
        found (Mapping): Content of ``sensitivity.json``.
        score (str): By which score.
    """
    rows = [row for row in rows_of(found, score) if not row['role']]
    whole = found['scores'][score]['all']['score']
    table = Table(
        title=f'{found["about"]["title"]}: {score} {whole:.4g}, of single '
        f'layers the worst {min(WORST, len(rows))}',
        caption='weights, inputs: score with these alone quantized; spared: '
        'what leaving both float gains; made, received: squared error over '
        'the squares of its float output',
        box=SIMPLE_HEAD,
    )
    table.add_column('layer', overflow='fold')
    heads = ('weights', 'inputs', 'spared', 'made', 'received')
    for head in heads:
        table.add_column(head, justify='right')
    for row in rows[:WORST]:
        spared = [row['spared_weight'], row['spared_act']]
        table.add_row(
            row['name'],
            _number(row['weight']),
            _number(row['act']),
            _number(sum(v for v in spared if v is not None)),
            _number(row['own'], '.2%'),
            _number(row['received'], '.2%'),
        )
    console.print(table)


def _number(value: float | None, form: str = '.3g') -> str:
    return '-' if value is None else f'{value:{form}}'
