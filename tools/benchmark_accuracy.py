# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Accuracy of methods on the embedded detectors, as a resumable grid.

Each cell (detector, recipe, bits, seed) is one run of ``tools/ptq.py`` in a
process of its own. A finished cell is kept under a hash of everything that
matters: the checkpoint, the spelled-out recipe, the budget, the seed, the
data and the package's own code. A suite that was stopped goes on where it
was, and a cell whose hash has changed is run again.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

import mmdet_ptq
from mmdet_ptq.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
DETECTORS = ('retinanet', 'yolof', 'faster-rcnn', 'mask-rcnn_swin', 'detr')
BITS = ('w2a4', 'w3a3', 'w4a4', 'w4a8')
METHODS = (
    'uniform',
    'adaround',
    'adaquant',
    'brecq',
    'qdrop',
    'pd_quant',
    'subsetq',
    'reg_ptq',
)


def _cells(detectors, recipes, bits, seeds=(0,)) -> list[tuple]:
    """The product, methods innermost so that a row fills up first."""
    return [
        (d, r, b, s)
        for s in seeds
        for b in bits
        for d in detectors
        for r in recipes
    ]


SUITES = {
    # Reg-PTQ, Table 1: every method at every width
    'table1': _cells(DETECTORS, METHODS, BITS),
    # Table S3: DETR
    's3': _cells(('detr',), ('uniform', 'qdrop', 'reg_ptq'), BITS[:3]),
}
BUDGETS = {
    # spec: a CPU has 200 steps a unit where a GPU has 2000
    'cpu': dict(iters=200, images=32),
    'gpu': dict(iters=2000, images=64),
}


def quant_cfg(recipe: str, bits: str, seed: int, budget: dict) -> dict:
    """The ``quant_cfg`` of one cell."""
    kinds = {p['type'] for p in load_recipe(recipe)['passes']}
    cfg = dict(
        recipe=recipe,
        bits=bits,
        calibration=dict(num_samples=budget['images'], seed=seed),
    )
    if 'Reconstruct' in kinds:
        cfg['pass_args'] = dict(Reconstruct=dict(iters=budget['iters']))
    return cfg


def code_hash() -> str:
    """Hash of the package's own sources."""
    digest = hashlib.sha256()
    folder = Path(mmdet_ptq.__file__).parent
    for path in sorted(folder.rglob('*.py')):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cell_hash(cell: tuple, budget: dict) -> str:
    """Hash of all that the result of a cell depends on."""
    detector, recipe, bits, seed = cell
    parts = [
        json.dumps(quant_cfg(recipe, bits, seed, budget), sort_keys=True),
        json.dumps(load_recipe(recipe), sort_keys=True, default=str),
        code_hash(),
        torch.__version__,
    ]
    for path in (
        ROOT / f'configs/digits/{detector}_digits.py',
        ROOT / f'demo/checkpoints/{detector}_digits.pth',
        ROOT / 'data/digits/train.json',
        ROOT / 'data/digits/val.json',
    ):
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def run_cell(cell: tuple, budget: dict, work: Path) -> dict:
    """Runs one cell.

    Args:
        cell (tuple): Detector, recipe, bits, seed.
        budget (dict): ``iters`` and ``images``.
        work (Path): Where its work dir goes.

    Returns:
        dict: The cell as it goes into the result file.

    Raises:
        RuntimeError: If ``tools/ptq.py`` fails; its log stays.
    """
    detector, recipe, bits, seed = cell
    folder = work / '_'.join(map(str, cell))
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / 'cell.py'
    config.write_text(
        f"_base_ = r'{ROOT}/configs/digits/{detector}_digits.py'\n"
        f'quant_cfg = {quant_cfg(recipe, bits, seed, budget)!r}\n'
    )
    log = folder / 'log.txt'
    with open(log, 'w') as out:
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / 'tools/ptq.py'),
                str(config),
                str(ROOT / f'demo/checkpoints/{detector}_digits.pth'),
                '--no-float-eval',
                '--resume',
                '--work-dir',
                str(folder),
            ],
            cwd=ROOT,
            stdout=out,
            stderr=out,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f'{cell}: exit code {done.returncode}, see {log}')
    found = json.loads((folder / 'ptq_result.json').read_text())
    units = found.get('reconstruction', [])
    return dict(
        detector=detector,
        recipe=recipe,
        bits=bits,
        seed=seed,
        metric='coco/bbox_mAP',
        quantized=found['quantized']['coco/bbox_mAP'],
        seconds=round(sum(found['seconds'].values()), 1),
        peak_rss_mb=found['peak_rss_mb'],
        settings=dict(
            budget,
            units=len(units),
            kept=sum(u['kept'] for u in units),
            threads=os.environ.get('OMP_NUM_THREADS', 'all'),
        ),
    )


def float_metrics(zoo: Path) -> dict[str, float]:
    """Float AP of each detector, from the committed zoo table's data."""
    cells = json.loads(zoo.read_text())['cells']
    return {
        c['detector']: c['float']['coco/bbox_mAP'] for c in cells if c['float']
    }


def to_markdown(suite: str, cells: list[dict], command: str) -> str:
    """One table for each width: a row a method, a column a detector."""
    lines = [
        f'# {suite}',
        '',
        'Box AP (0.50:0.95) on the 320 validation images of the digits set. '
        f'Made by `{command}` on {platform.machine()} CPU, torch '
        f'{torch.__version__}.',
        '',
    ]
    detectors = list(dict.fromkeys(c['detector'] for c in cells))
    for bits in dict.fromkeys(c['bits'] for c in cells):
        here = [c for c in cells if c['bits'] == bits]
        lines += [
            f'## {bits}',
            '',
            '| method | ' + ' | '.join(detectors) + ' | mean |',
            '|---' * (len(detectors) + 2) + '|',
        ]
        floats = {c['detector']: c['float'] for c in cells}
        lines.append(_row('float', [[floats[d]] for d in detectors]))
        for recipe in dict.fromkeys(c['recipe'] for c in here):
            lines.append(
                _row(
                    recipe,
                    [
                        [
                            c['quantized']
                            for c in here
                            if (c['recipe'], c['detector']) == (recipe, d)
                        ]
                        for d in detectors
                    ],
                )
            )
        lines.append('')
    return '\n'.join(lines)


def _row(name: str, columns: list[list[float]]) -> str:
    """Mean over seeds, with the spread where there are several."""
    means = [sum(c) / len(c) if c else None for c in columns]
    texts = []
    for mean, column in zip(means, columns, strict=True):
        text = '' if mean is None else f'{mean:.3f}'
        if len(column) > 1:
            text += f' ± {(max(column) - min(column)) / 2:.3f}'
        texts.append(text)
    whole = (
        '' if None in means else f'{sum(means) / len(means):.3f}'  # type: ignore[arg-type]
    )
    return '| ' + ' | '.join([name, *texts, whole]) + ' |'


def parse_cell(text: str) -> tuple:
    """``detector,recipe,bits,seed`` as a cell."""
    parts = text.split(',')
    if len(parts) != 4 or not parts[3].isdigit():
        raise argparse.ArgumentTypeError(
            f'{text!r}: write detector,recipe,bits,seed'
        )
    return (*parts[:3], int(parts[3]))


def main() -> int:
    """Command line of the tool; exit code 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('suite', choices=SUITES)
    parser.add_argument('--budget', choices=BUDGETS, default='cpu')
    parser.add_argument(
        '--cell',
        type=parse_cell,
        help='only this cell: detector,recipe,bits,seed',
    )
    parser.add_argument(
        '--fresh', action='store_true', help='run a finished cell again'
    )
    parser.add_argument('--only', nargs='*', help='only these detectors')
    parser.add_argument('--out', default=str(ROOT / 'docs' / 'results'))
    parser.add_argument(
        '--work-dir', default=str(ROOT / 'work_dirs' / 'accuracy')
    )
    args = parser.parse_args()
    todo = SUITES[args.suite]
    if args.cell:
        if args.cell not in todo:
            parser.error(f'{args.suite} has no cell {args.cell}')
        todo = [args.cell]
    if args.only:
        todo = [c for c in todo if c[0] in args.only]
    budget = BUDGETS[args.budget]
    path = Path(args.out) / f'{args.suite}.json'
    kept = json.loads(path.read_text()) if path.is_file() else []
    known = {
        (c['detector'], c['recipe'], c['bits'], c['seed']): c for c in kept
    }
    floats = float_metrics(ROOT / 'docs' / 'results' / 'zoo.json')
    failed = 0
    for cell in todo:
        digest = cell_hash(cell, budget)
        if not args.fresh and known.get(cell, {}).get('hash') == digest:
            continue
        try:
            found = run_cell(cell, budget, Path(args.work_dir) / args.suite)
        except RuntimeError as error:
            print(error, flush=True)
            failed += 1
            continue
        found = dict(found, float=floats[cell[0]], hash=digest)
        known[cell] = found
        print(*cell, found['quantized'], f'{found["seconds"]} s', flush=True)
        order = {c: i for i, c in enumerate(SUITES[args.suite])}
        cells = sorted(
            known.values(),
            key=lambda c: order.get(
                (c['detector'], c['recipe'], c['bits'], c['seed']), len(order)
            ),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(cells, indent=1))
        path.with_suffix('.md').write_text(
            to_markdown(
                args.suite,
                cells,
                f'python tools/benchmark_accuracy.py {args.suite}'
                + (f' --budget {args.budget}' if args.budget != 'cpu' else ''),
            )
        )
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
