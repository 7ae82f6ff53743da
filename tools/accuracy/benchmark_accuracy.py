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
import itertools
import json
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.accuracy.cells import (
    cell_hash,
    code_hash,
    flag_of,
    float_metrics,
    key_of,
    name_of,
    parse_cell,
    run_cell,
)
from tools.accuracy.suites import BUDGETS, ROOT, SUITES
from tools.accuracy.tables import to_markdown

Runner = Callable[[tuple, dict, Path, int], dict]


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


def main(words: list[str] | None = None, runner: Runner = run_cell) -> int:
    """Command line of the tool.

    Args:
        words (list[str], optional): Defaults to those of the process.
        runner (Callable): Runs a cell.

    Returns:
        int: Exit code, 1 if a cell failed.
    """
    parser = _parser()
    args = parser.parse_args(words)
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
            found = runner(
                cell, budget, Path(args.work_dir) / args.suite, threads
            )
        except RuntimeError as error:
            print(error, flush=True)
            failed.append(cell)
            return
        before = floats[cell[0]]
        found.update(
            float=before['coco/bbox_mAP'],
            hash=cell_hash(cell, budget),
            code=code,
        )
        if 'mask' in found:
            found['mask_float'] = before['coco/segm_mAP']
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
