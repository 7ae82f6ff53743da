# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Fills the marked places of docs/reproduce.md.

Published numbers come from docs/results/published_reg_ptq.json and
published_transformers.json, those of this project from
docs/results/reproduce/NAME.json, each the ``ptq_result.json`` of a run.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from tools.docs.make_ptq_configs import RECIPES as TRANSFORMERS
from tools.docs.markdown import markdown_table
from tools.docs.transformer_tables import transformer_places
from tools.docs.zoo import checkpoints

DATA = Path('docs/results/published_reg_ptq.json')
OTHERS = Path('docs/results/published_transformers.json')
RESULTS = Path('docs/results/reproduce')
RECIPES = {
    'AdaRound': 'adaround',
    'AdaQuant': 'adaquant',
    'BRECQ': 'brecq',
    'PD-Quant': 'pd_quant',
    'QDrop': 'qdrop',
    'SubSetQ': 'subsetq',
    'Reg-PTQ': 'reg_ptq',
}
VARIANTS = {**RECIPES, 'FP head': 'fp_head'}
METRICS = ('coco/bbox_mAP', 'pascal_voc/mAP')


class Found:
    """Results of runs made here, by ``DETECTOR_BITS_VARIANT``.

    Args:
        folder (Path): Where the JSON files are; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(folder.glob('*.json'))
        runs = {f.stem: json.loads(f.read_text()) for f in files}
        # a run that was stopped before its test has no metrics yet
        self.runs = {n: r for n, r in runs.items() if r['quantized']}
        self.asked: set[str] = set()

    def run(self, detector: str, bits: str, variant: str) -> dict | None:
        """One result, None if it is not there.

        Raises:
            ValueError: If the file is of other bits or another recipe than
                its name says.
        """
        name = f'{detector}_{bits}_{variant}'
        self.asked.add(name)
        run = self.runs.get(name)
        recipe = variant.removesuffix('_fp_head')
        known = {*RECIPES.values(), *TRANSFORMERS}
        recipe = recipe if recipe in known else 'reg_ptq'
        if run and (run['recipe'], run['bits']) != (recipe, bits):
            raise ValueError(
                f'{name}.json is of {run["recipe"]} {run["bits"]}'
            )
        return run

    def of(self, detector: str) -> list[dict]:
        """All results of a detector."""
        return [
            r for n, r in self.runs.items() if n.startswith(f'{detector}_')
        ]

    def ap(self, detector: str, bits: str, variant: str) -> str:
        """AP in per cent, '' if it is not there."""
        if bits == 'float':
            tested = [r['float'] for r in self.of(detector) if r['float']]
            return _ap(tested[0]) if tested else ''
        run = self.run(detector, bits, variant)
        return _ap(run['quantized']) if run else ''

    def cost(self, detector: str, bits: str, variant: str) -> tuple[Any, Any]:
        """MACs worth in 10^9, parameters in 10^6 bytes; None if not there."""
        if bits == 'float':
            for run in self.of(detector):
                return run['cost']['macs'] / 1e9, run['storage_mb']['float']
            return None, None
        run = self.run(detector, bits, variant)
        if run is None:
            return None, None
        flops = run['cost']['reg_ptq_flops']
        return flops / 1e9, run['storage_mb']['quantized']

    def check(self) -> None:
        """Refuses files that no table has a place for.

        Raises:
            ValueError: Names them.
        """
        lost = sorted(set(self.runs) - self.asked)
        if lost:
            raise ValueError(f'no table has a cell for {", ".join(lost)}')


def _ap(metrics: dict) -> str:
    return f'{100 * next(metrics[k] for k in METRICS if k in metrics):.1f}'


def _cell(published: float | str, here: str) -> str:
    return f'{published} / {here}'.rstrip()


def methods(table: dict, names: dict, found: Found, tail: str = '') -> str:
    """A table with a row for each method and width."""
    rows = []
    for method, bits, values in table['rows']:
        variant = VARIANTS.get(method, method) + (
            tail if method != 'float' else ''
        )
        rows.append(
            [
                method,
                bits if bits != 'float' else '',
                *(
                    _cell(v, found.ap(d, bits, variant))
                    for d, v in zip(table['columns'], values, strict=True)
                ),
            ]
        )
    heads = [names[d]['name'] for d in table['columns']]
    return markdown_table(['method', 'bits', *heads], rows)


def thresholds(table: dict, found: Found) -> str:
    """Table 2: a row for each theta_I, a column for each theta_C."""
    d, bits = table['detector'], table['bits']
    rows = []
    for i, values in zip(table['theta_i'], table['values'], strict=True):
        cells = zip(table['theta_c'], values, strict=True)
        rows.append(
            [
                i,
                *(
                    _cell(v, found.ap(d, bits, f'thresholds_c{c}_i{i}'))
                    for c, v in cells
                ),
            ]
        )
    local = _cell(table['baseline'], found.ap(d, bits, 'uniform_heads'))
    text = markdown_table(['θ_I \\ θ_C', *table['theta_c']], rows)
    return f'{text}\n\nLocal loss alone: {local}.'


def heads(table: dict, names: dict, found: Found) -> str:
    """Table 3: uniform against logarithmic values."""
    rows = [
        [
            names[d]['name'],
            kind,
            *(
                _cell(v, found.ap(d, b, f'{kind.lower()}_heads'))
                for b, v in zip(table['bits'], values, strict=True)
            ),
        ]
        for d, kind, values in table['rows']
    ]
    return markdown_table(['detector', 'heads', *table['bits']], rows)


def cost(table: dict, names: dict, found: Found) -> str:
    """Table 4: operations, and storage in 10^6 float32 numbers."""
    what = dict(float='nothing', fp_head='backbone, neck', reg_ptq='all')
    rows = []
    for d, bits, variant, *published in table['rows']:
        flops, size = found.cost(d, bits, variant)
        here = (flops, size and size / 4)
        cells = [
            _cell(p, f'{h:.2f}' if h else '')
            for p, h in zip(published, here, strict=True)
        ]
        rows.append([names[d]['name'], bits, what[variant], *cells])
    head = ['detector', 'bits', 'quantized', 'GFLOPs', 'storage (M)']
    return markdown_table(head, rows)


def deployed(table: dict, detector: str, found: Found) -> str:
    """Table S5: latency, and storage in MiB."""
    ours = {
        'Float32': ('float', ''),
        'INT4*': ('w4a4', 'fp_head'),
        'INT4': ('w4a4', 'reg_ptq'),
    }
    rows = []
    for kind, latency, storage in table['rows']:
        size = found.cost(detector, *ours[kind])[1] if kind in ours else None
        here = f'{size * 1e6 / 2**20:.1f}' if size else ''
        rows.append([kind, latency, _cell(storage, here)])
    return markdown_table(['type', 'latency (ms)', 'storage (MB)'], rows)


def document(text: str, found: Found | None = None) -> str:
    """Fills the page.

    Args:
        text (str): The page as it is; what stands between ``<!-- NAME -->``
            and ``<!-- /NAME -->`` is replaced.
        found (Found, optional): Results of runs made here. Defaults to
            those in :data:`RESULTS`.

    Returns:
        str: The page as it should be.

    Raises:
        ValueError: If a result file does not fit its name or any cell, or
            the page has no place for a table.
    """
    data = json.loads(DATA.read_text())
    names, t = data['detectors'], data['tables']
    others = json.loads(OTHERS.read_text())
    found = found or Found(RESULTS)
    table, commands = checkpoints(data)
    lists = dict(
        COCO=t['1']['columns'],
        S1=t['S1']['columns'],
        VOC=t['S2']['columns'],
        HEADS=list(dict.fromkeys(d for d, *_ in t['3']['rows'])),
        QDROP=data['qdrop_coco']['columns'],
        THETA_C=t['2']['theta_c'],
        THETA_I=t['2']['theta_i'],
        SWIN=others['swin']['columns'],
        TRANSFORMERS=TRANSFORMERS,
    )
    variables = '\n'.join(f'{k}="{" ".join(v)}"' for k, v in lists.items())
    places = dict(
        checkpoints=table,
        download=f'```bash\n{commands}\n```',
        variables=f'```bash\n{variables}\n```',
        qdrop=methods(data['qdrop_coco'], names, found, '_fp_head'),
        table_2=thresholds(t['2'], found),
        table_3=heads(t['3'], names, found),
        table_4=cost(t['4'], names, found),
        table_s5=deployed(t['S5'], t['2']['detector'], found),
        **transformer_places(others, found),
    )
    for key in ('1', 'S1', 'S2', 'S3', 'S4'):
        places[f'table_{key.lower()}'] = methods(t[key], names, found)
    found.check()
    for name, new in places.items():
        text, count = re.subn(
            f'(<!-- {name} -->\n).*?(<!-- /{name} -->)',
            lambda m, new=new: f'{m[1]}{new}\n{m[2]}',
            text,
            flags=re.DOTALL,
        )
        if count != 1:
            raise ValueError(f'the page has {count} places for {name}')
    return text


def main() -> int:
    """Writes the page, or with --check compares it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', default='docs/reproduce.md')
    parser.add_argument(
        '--check',
        action='store_true',
        help='exit 1 if the file is not up to date',
    )
    args = parser.parse_args()
    path = Path(args.out)
    old = path.read_text()
    text = document(old)
    if args.check:
        print('up to date' if text == old else f'{path} is out of date')
        return int(text != old)
    path.write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
