# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The tables of docs/reproduce.md on transformer recipes."""

from collections.abc import Sequence
from typing import Protocol

from tools.docs.make_ptq_configs import DETECTORS, RECIPES
from tools.docs.markdown import markdown_table

#: what a recipe's paper calls it
NAMES = {
    'adalog': 'AdaLog',
    'apq_vit': 'APQ-ViT',
    'fq_vit': 'FQ-ViT',
    'group_static': 'consecutive groups',
    'igq_vit': 'IGQ-ViT',
    'noisyquant': 'NoisyQuant',
    'ptq4vit': 'PTQ4ViT',
    'ptq_for_vit': 'PTQ for ViT',
    'repq_vit': 'RepQ-ViT',
}
METRICS = ('coco/bbox_mAP', 'coco/segm_mAP')


class Results(Protocol):
    """Runs made here."""

    def run(self, detector: str, bits: str, variant: str) -> dict | None:
        """One result, None if it is not there."""

    def of(self, detector: str) -> list[dict]:
        """All results of a detector."""


def recipe_table(table: dict, found: Results) -> tuple[list, list[list]]:
    """Head and rows: each method at each width, as published and as here.

    Args:
        table (dict): ``columns`` (detectors) and ``rows``: method, bits, and
            for each detector box AP and mask AP, None if it is unknown.
        found (Results): Runs made here.
    """
    published = {(m, b): values for m, b, values in table['rows']}
    columns = table['columns']
    none = [None] * len(columns)
    floats = [
        next((r['float'] for r in found.of(d) if r['float']), None)
        for d in columns
    ]
    values = published.pop(('float', 'float'))
    rows = [_row('float', '', values, floats)]
    for bits in DETECTORS[columns[0]]:
        for recipe in RECIPES:
            runs = [found.run(d, bits, recipe) for d in columns]
            values = published.pop((NAMES[recipe], bits), none)
            here = [run and run['quantized'] for run in runs]
            rows.append(_row(NAMES[recipe], bits, values, here))
    # methods without a recipe have nothing to be run
    rows += [[m, b, *map(_aps, v)] for (m, b), v in published.items()]
    return ['method', 'bits'], rows


def later_table(table: dict) -> list[list]:
    """Rows of methods that came later, as published."""
    return [[m, b, *map(_aps, values)] for m, b, values in table['later']]


def _row(
    name: str, bits: str, published: Sequence, here: Sequence[dict | None]
) -> list[str]:
    cells = [
        f'{_aps(p)} / {_measured(h)}'.rstrip()
        for p, h in zip(published, here, strict=True)
    ]
    return [name, bits, *cells]


def _aps(values: Sequence[float] | None) -> str:
    return '–' if values is None else ' '.join(map(str, values))


def _measured(metrics: dict | None) -> str:
    found = [metrics[k] for k in METRICS if k in metrics] if metrics else []
    return ' '.join(f'{100 * ap:.1f}' for ap in found)


def transformer_places(data: dict, found: Results) -> dict[str, str]:
    """What the page has of the transformer recipes, by place."""
    names = data['detectors']
    places = {}
    for key in ('swin', 'detr'):
        head, rows = recipe_table(data[key], found)
        heads = [names[d]['name'] for d in data[key]['columns']]
        places[key] = markdown_table([*head, *heads], rows)
    heads = [names[d]['name'] for d in data['swin']['columns']]
    rows = later_table(data['swin'])
    places['swin_later'] = markdown_table(['method', 'bits', *heads], rows)
    lines = [
        f'wget -O checkpoints/theirs.pth \\\n    {names[d]["weights"]}\n'
        'python -m tools.data.convert_swin_checkpoint checkpoints/theirs.pth '
        f'\\\n    checkpoints/{d}.pth --trust-checkpoint'
        for d in data['swin']['columns']
    ]
    places['swin_download'] = '```bash\n' + '\n'.join(lines) + '\n```'
    return places
