# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Warnings; settings, versions and the command."""

import pprint
from collections.abc import Sequence
from typing import Any

from ..files import Run
from ..markup import Html, details, join, paragraph, table, tag
from .words import labels


def warned(runs: Sequence[Run]) -> Html:
    """What is wrong or worth a look, before anything else."""
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        told = [*run.problems, *(run.part('notes') or [])]
        if not run.part('quantized'):
            told.append(
                'the run did not get to the test of the quantized detector'
            )
        left = run.part('layers', 'float') or []
        title = [tag('h3', name)] if len(runs) > 1 else []
        found += title
        if told:
            found.append(tag('ul', *(tag('li', text) for text in told)))
        else:
            found.append(paragraph('No warnings.', cls='none'))
        found += _float(run, left)
    return join(found)


def _float(run: Run, left: Sequence[dict]) -> list[Html]:
    if not left:
        return []
    quantized = run.part('layers', 'quantized')
    rows = [[one['name'], one['why']] for one in left]
    return [
        details(
            f'{len(left)} layers stay float, {quantized} are quantized',
            table(['layer left float', 'why'], rows, words=2),
        )
    ]


def settings(runs: Sequence[Run]) -> Html:
    """Every setting and version, and the command."""
    found = []
    for name, run in zip(labels(runs), runs, strict=True):
        title = [tag('h3', name)] if len(runs) > 1 else []
        found += [*title, *_of(run)]
    return join(found)


def _of(run: Run) -> list[Html]:
    checkpoint = run.part('checkpoint') or {}
    facts = [
        ('started', run.part('started')),
        ('config', run.part('config')),
        ('float checkpoint', checkpoint.get('path')),
        ('its SHA-256', checkpoint.get('sha256')),
        ('recipe', run.part('recipe')),
        ('bits', run.part('bits')),
        *((f'machine: {k}', v) for k, v in _items(run, 'machine')),
        ('most memory (MiB)', run.part('peak_rss_mb')),
        ('most GPU memory (MiB)', run.part('peak_gpu_mb')),
        *((f'version: {k}', v) for k, v in _items(run, 'versions')),
    ]
    rows = [[key, value] for key, value in facts if value not in (None, '')]
    command = run.part('command')
    words = command or 'not recorded: the run is of an older version'
    return [
        paragraph('The command:'),
        tag('pre', words),
        table(['', ''], rows, words=2),
        details(
            'Every setting (quant_cfg)',
            tag('pre', _spelled(run.part('quant_cfg'))),
        ),
    ]


def _items(run: Run, key: str) -> list[tuple[str, Any]]:
    return list((run.part(key) or {}).items())


def _spelled(found: Any) -> str:
    text = pprint.pformat(found, sort_dicts=False, width=76)
    return f'quant_cfg = {text}'
