# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Accuracy of methods on the embedded detectors, as a resumable grid.

Each cell (detector, recipe, bits, seed) is one run of ``tools/ptq.py`` in a
process of its own. A finished cell is kept under a hash of everything that
matters: the checkpoint, the spelled-out recipe, the budget, the seed, the
data and the package's own code. A suite that was stopped goes on where it
was, and a cell whose hash has changed is run again. A run that is part of
several suites is done once.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import mmdet_ptq
from mmdet_ptq.recipe import load_recipe
from tools.accuracy.suites import (
    BUDGETS,
    ROOT,
    SUITES,
    YOLOX,
    files_of,
    quant_cfg,
)
from tools.accuracy.tables import to_markdown


def code_hash() -> str:
    """Hash of the sources that a result can depend on."""
    digest = hashlib.sha256()
    folder = Path(mmdet_ptq.__file__).parent
    for path in sorted(folder.rglob('*.py')):
        name = path.relative_to(folder).as_posix()
        if name.split('/')[0] in ('cost', 'recipes', 'report', 'testing'):
            continue  # recipes: a cell's own is part of its hash
        digest.update(name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def cell_hash(cell: tuple, budget: dict) -> str:
    """Hash of all but code that the result of a cell depends on."""
    detector, method, bits, seed = cell
    cfg = quant_cfg(method, bits, seed, budget)
    parts = [
        json.dumps(cfg, sort_keys=True),
        json.dumps(load_recipe(cfg['recipe']), sort_keys=True, default=str),
        torch.__version__,
    ]
    for path in files_of(detector).values():
        parts.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return hashlib.sha256('\n'.join(parts).encode()).hexdigest()


def run_cell(cell: tuple, budget: dict, work: Path, threads: int) -> dict:
    """Runs one cell.

    Args:
        cell (tuple): Detector, method, bits, seed.
        budget (dict): One of ``BUDGETS``.
        work (Path): Where its work dir goes.
        threads (int): How many it computes with.

    Returns:
        dict: The cell as it goes into the result file.

    Raises:
        RuntimeError: If ``tools/ptq.py`` fails; its log stays.
    """
    detector, method, bits, seed = cell
    # never goes on with what other code began
    folder = work / code_hash()[:12] / '_'.join(map(str, cell))
    folder.mkdir(parents=True, exist_ok=True)
    files = files_of(detector)
    config = folder / 'cell.py'
    config.write_text(
        f"_base_ = r'{files['config']}'\n"
        f'quant_cfg = {quant_cfg(method, bits, seed, budget)!r}\n'
    )
    log = folder / 'log.txt'
    with open(log, 'w') as out:
        done = subprocess.run(
            [
                sys.executable,
                str(ROOT / 'tools/ptq.py'),
                str(config),
                str(files['checkpoint']),
                '--no-float-eval',
                '--resume',
                '--work-dir',
                str(folder),
            ],
            cwd=ROOT,
            env=dict(os.environ, OMP_NUM_THREADS=str(threads)),
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
        recipe=method,
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
            threads=threads,
        ),
    )


def float_metrics(results: Path) -> dict[str, float]:
    """Float AP of each detector, from committed result files."""
    cells = json.loads((results / 'zoo.json').read_text())['cells']
    yolox = json.loads((results / 'yolox_nano_uniform_w8a8.json').read_text())
    found = {c['detector']: c['float'] for c in cells if c['float']}
    found[YOLOX] = yolox['float']
    return {name: ap['coco/bbox_mAP'] for name, ap in found.items()}


def parse_cell(text: str) -> tuple:
    """``detector,recipe,bits,seed`` as a cell."""
    parts = text.split(',')
    if len(parts) != 4 or not parts[3].isdigit():
        raise argparse.ArgumentTypeError(
            f'{text!r}: write detector,recipe,bits,seed'
        )
    return (*parts[:3], int(parts[3]))


def key_of(cell: dict) -> tuple:
    """Of a finished cell: detector, method, bits, seed."""
    return cell['detector'], cell['recipe'], cell['bits'], cell['seed']


def stale(
    todo: list[tuple], known: dict[tuple, dict], budget: dict
) -> tuple[list[tuple], list[tuple]]:
    """Cells to run, and finished ones that only the code speaks against.

    Args:
        todo (list[tuple]): Cells that are wanted.
        known (dict[tuple, dict]): Finished cells.
        budget (dict): One of ``BUDGETS``.

    Returns:
        tuple[list[tuple], list[tuple]]: Both, in the order of ``todo``.
    """
    code, new, doubted = code_hash(), [], []
    for cell in todo:
        old = known.get(cell, {})
        if old.get('hash') != cell_hash(cell, budget):
            new.append(cell)
        elif old['code'] != code:
            doubted.append(cell)
    return new, doubted


def measured(folder: Path) -> dict[str, dict]:
    """Finished cells of this code in all suites, by hash.

    The same run can be part of several suites, under other names.

    Args:
        folder (Path): With the result files.

    Returns:
        dict[str, dict]: Each with ``suite`` added.
    """
    code, found = code_hash(), {}
    for suite, budget in itertools.product(SUITES, BUDGETS):
        path = folder / f'{name_of(suite, budget)}.json'
        for cell in json.loads(path.read_text()) if path.is_file() else []:
            if cell['code'] == code:
                found[cell['hash']] = dict({'suite': suite}, **cell)
    return found


def name_of(suite: str, budget: str) -> str:
    """Of the result files: a budget does not overwrite another's."""
    return suite if budget == 'cpu' else f'{suite}_{budget}'


def flag_of(budget: str) -> str:
    """What a command ends with to ask for a budget."""
    return '' if budget == 'cpu' else f' --budget {budget}'


class Table:
    """The cells of a suite in its two files, written after each."""

    def __init__(
        self, suite: str, budget: str, folder: Path, command: str
    ) -> None:
        self.suite, self.command = suite, command
        self.path = folder / f'{name_of(suite, budget)}.json'
        kept = json.loads(self.path.read_text()) if self.path.is_file() else []
        self.cells = {key_of(c): c for c in kept}
        self.lock = threading.Lock()

    def add(self, found: dict) -> None:
        """Takes a cell and writes the files."""
        with self.lock:
            self.cells[key_of(found)] = found
            self.write()

    def write(self) -> None:
        """Writes both files, cells in the order of the suite."""
        order = {c: i for i, c in enumerate(SUITES[self.suite])}
        cells = [
            self.cells[key]
            for key in sorted(
                self.cells, key=lambda c: order.get(c, len(order))
            )
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(cells, indent=1))
        self.path.with_suffix('.md').write_text(
            to_markdown(self.suite, cells, self.command)
        )


def _parser() -> argparse.ArgumentParser:
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
    parser.add_argument(
        '--no-run',
        action='store_true',
        help='only write the table of the finished cells again',
    )
    parser.add_argument(
        '--spot-check',
        type=int,
        metavar='N',
        help='where only the code has changed, run N finished cells again, '
        'and keep the others if all N give the same AP',
    )
    parser.add_argument('--only', nargs='*', help='only these detectors')
    parser.add_argument('--bits', nargs='*', help='only these widths')
    parser.add_argument('--methods', nargs='*', help='only these methods')
    parser.add_argument(
        '--jobs', type=int, default=1, help='cells at once, sharing the cores'
    )
    parser.add_argument('--out', default=str(ROOT / 'docs' / 'results'))
    parser.add_argument(
        '--work-dir', default=str(ROOT / 'work_dirs' / 'accuracy')
    )
    return parser


def choose(parser: argparse.ArgumentParser, args: Any) -> list[tuple]:
    """The cells of a suite that ``only``, ``methods`` and ``bits`` leave."""
    cells = SUITES[args.suite]
    for at, names in ((0, args.only), (1, args.methods), (2, args.bits)):
        unknown = set(names or ()) - {c[at] for c in SUITES[args.suite]}
        if unknown:
            parser.error(f'{args.suite} has no {", ".join(sorted(unknown))}')
        cells = [c for c in cells if not names or c[at] in names]
    return cells


def main() -> int:
    """Command line of the tool; exit code 1 if a cell failed."""
    parser = _parser()
    args = parser.parse_args()
    todo = [args.cell] if args.cell else choose(parser, args)
    if args.cell and args.cell not in SUITES[args.suite]:
        parser.error(f'{args.suite} has no cell {args.cell}')
    budget = BUDGETS[args.budget]
    table = Table(
        args.suite,
        args.budget,
        Path(args.out),
        f'python -m tools.accuracy.benchmark_accuracy {args.suite}'
        f'{flag_of(args.budget)}',
    )
    if args.no_run:
        if not table.cells:
            parser.error(f'{table.path} has no finished cell')
        table.write()
        return 0
    floats = float_metrics(ROOT / 'docs' / 'results')
    threads = max(1, (os.cpu_count() or 1) // args.jobs)
    code = code_hash()
    failed = []

    def run(cell: tuple) -> None:
        try:
            found = run_cell(
                cell, budget, Path(args.work_dir) / args.suite, threads
            )
        except RuntimeError as error:
            print(error, flush=True)
            failed.append(cell)
            return
        found.update(
            float=floats[cell[0]], hash=cell_hash(cell, budget), code=code
        )
        table.add(found)
        print(*cell, found['quantized'], f'{found["seconds"]} s', flush=True)

    def run_all(cells: list[tuple]) -> None:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run, cells))

    new, doubted = (
        (todo, []) if args.fresh else stale(todo, table.cells, budget)
    )
    if args.spot_check and doubted:
        picked = random.Random(code).sample(
            doubted, min(args.spot_check, len(doubted))
        )
        before = {c: table.cells[c]['quantized'] for c in picked}
        run_all(picked)
        same = not set(failed) & set(picked) and all(
            table.cells[c]['quantized'] == before[c] for c in picked
        )
        print(
            f'{len(picked)} of {len(doubted)} cells run again: '
            + ('all the same' if same else 'not the same, all run again')
        )
        doubted = [c for c in doubted if c not in picked]
        if same:
            for cell in doubted:
                table.add(dict(table.cells[cell], code=code))
            doubted = []
    elsewhere = {} if args.fresh else measured(Path(args.out))
    left = []
    for cell in sorted([*new, *doubted], key=todo.index):
        same = elsewhere.get(cell_hash(cell, budget))
        if same:
            table.add(dict(same, recipe=cell[1]))
            print(*cell, same['quantized'], f'from {same["suite"]}')
        else:
            left.append(cell)
    run_all(left)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
