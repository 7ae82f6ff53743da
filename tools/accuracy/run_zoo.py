# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes and tests the embedded detectors; writes the zoo table."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from mmdet_ptq.engine.machine import machine_line

DETECTORS = (
    'retinanet',
    'yolof',
    'faster-rcnn',
    'mask-rcnn_swin',
    'cascade-mask-rcnn_swin',
    'detr',
)
CELLS = ('uniform:w8a8', 'uniform:w4a4', 'minmax:w4a4')
METRICS = ('bbox_mAP', 'segm_mAP')


def run(
    detector: str, recipe: str, bits: str, work: Path, float_eval: bool
) -> dict:
    """Runs ``tools/ptq.py`` in a process of its own.

    Args:
        detector (str): Stem of the config before ``_digits``.
        recipe (str): Recipe name.
        bits (str): E.g. ``w8a8``.
        work (Path): Where work dirs go.
        float_eval (bool): Whether to test the float model too.

    Returns:
        dict: The content of ``ptq_result.json``.
    """
    folder = work / f'{detector}_{recipe}_{bits}'
    command = [
        sys.executable,
        'tools/ptq.py',
        f'configs/digits/{detector}_digits.py',
        f'demo/checkpoints/{detector}_digits.pth',
        '--recipe',
        recipe,
        '--bits',
        bits,
        '--no-report',
        '--work-dir',
        str(folder),
    ]
    if not float_eval:
        command.append('--no-float-eval')
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / 'stdout.txt', 'w') as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return json.loads((folder / 'ptq_result.json').read_text())


def to_markdown(cells: list[dict]) -> str:
    """The table, a row for each detector."""
    kinds = list(dict.fromkeys((c['recipe'], c['bits']) for c in cells))
    by_key = {(c['detector'], c['recipe'], c['bits']): c for c in cells}
    lines = [
        '| detector | metric | float | '
        + ' | '.join(f'{r} {b}' for r, b in kinds)
        + ' | MB float | MB w8a8 |',
        '|---' * (len(kinds) + 5) + '|',
    ]
    for detector in dict.fromkeys(c['detector'] for c in cells):
        rows = [by_key.get((detector, *k)) for k in kinds]
        first = next(r for r in rows if r and r['float'])
        for metric in METRICS:
            key = f'coco/{metric}'
            if key not in first['float']:
                continue
            size = next(
                (r['storage_mb'] for r in rows if r and r['bits'] == 'w8a8'),
                None,
            )
            lines.append(
                f'| {detector} | {metric} | {first["float"][key]:.3f} | '
                + ' | '.join(
                    f'{r["quantized"][key]:.3f}' if r else '' for r in rows
                )
                + (
                    f' | {size["float"]:.2f} | {size["quantized"]:.2f} |'
                    if size
                    else ' | | |'
                )
            )
    return '\n'.join(lines) + '\n'


def put_into_readme(table: str, path: Path = Path('README.md')) -> None:
    """Replaces what stands between the zoo markers of the README."""
    before, rest = path.read_text().split('<!-- zoo -->\n')
    after = rest.split('<!-- /zoo -->')[1]
    path.write_text(f'{before}<!-- zoo -->\n{table}<!-- /zoo -->{after}')


def main() -> int:
    """Runs what is asked for and writes JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--detectors', nargs='*', default=list(DETECTORS), choices=DETECTORS
    )
    parser.add_argument(
        '--cells', nargs='*', default=list(CELLS), help='recipe:bits'
    )
    parser.add_argument('--work-dir', default='work_dirs/zoo')
    parser.add_argument('--out', default='docs/results/zoo.json')
    args = parser.parse_args()
    out = Path(args.out)
    old = json.loads(out.read_text())['cells'] if out.is_file() else []
    cells = {(c['detector'], c['recipe'], c['bits']): c for c in old}
    for detector in args.detectors:
        for i, cell in enumerate(args.cells):
            recipe, bits = cell.split(':')
            found = run(detector, recipe, bits, Path(args.work_dir), i == 0)
            keep = ('float', 'quantized', 'storage_mb', 'layers', 'machine')
            cells[detector, recipe, bits] = dict(
                detector=detector,
                recipe=recipe,
                bits=bits,
                checkpoint=found['checkpoint']['sha256'],
                **{k: found[k] for k in keep},
            )
            boxes = found['quantized']['coco/bbox_mAP']
            print(
                f'{detector} {recipe} {bits}: box AP {boxes:.3f}', flush=True
            )
            order = [d for d in DETECTORS]
            ordered = sorted(
                cells.values(), key=lambda c: order.index(c['detector'])
            )
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(
                json.dumps(
                    dict(
                        command='python -m tools.accuracy.run_zoo',
                        machine=machine_line(),
                        cells=ordered,
                    ),
                    indent=1,
                )
            )
            put_into_readme(to_markdown(ordered))
    return 0


if __name__ == '__main__':
    sys.exit(main())
