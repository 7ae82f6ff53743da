# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compares the benchmark of two commits, in turns on one machine.

Each round runs ``benchmark`` once in a copy of either tree, so that what
else the machine does meets both. Of the ratios to the float model the least
of all rounds counts: it is the one that was disturbed least::

    python -m tools.speed.compare_commits OLD NEW
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from tools.accuracy.compare_commits import check_out
from tools.speed.benchmark import DETECTORS
from tools.speed.device import add_device, add_size, check_device

RATIOS = ('calibrate', 'forward')


def measure(folder: Path, name: str, options: list[str]) -> dict[str, float]:
    """Ratios of one detector by a commit's own code.

    Args:
        folder (Path): From :func:`check_out`.
        name (str): One of ``DETECTORS``.
        options (list[str]): Of the benchmark.

    Returns:
        dict[str, float]: ``calibrate`` and ``forward``.

    Raises:
        RuntimeError: If the benchmark fails; its output is in the message.
    """
    tree, out = folder / 'tree', folder / 'benchmark.json'
    out.unlink(missing_ok=True)
    script = tree / 'tools/benchmark.py'
    where = [str(script)] if script.is_file() else []
    done = subprocess.run(
        [
            sys.executable,
            *(where or ['-m', 'tools.speed.benchmark']),
            *('--only', name, '--out', str(out)),
            *options,
        ],
        cwd=tree,
        env=dict(os.environ, PYTHONPATH=str(tree)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f'{name} in {tree}:\n{done.stderr[-2000:]}')
    found = json.loads(out.read_text())['detectors'][name]
    return {ratio: found[ratio] for ratio in RATIOS}


def table(found: dict[str, list[list[dict]]]) -> str:
    """Least ratios of old and new, a row for each detector.

    Args:
        found (dict): For each detector the rounds of old and of new.

    Returns:
        str: Markdown.
    """
    lines = [
        '| detector | calibrate old | new | forward old | new |',
        '|---|---|---|---|---|',
    ]
    for name, rounds in found.items():
        cells = [
            f'{min(r[ratio] for r in side):.3f}'
            for ratio in RATIOS
            for side in rounds
        ]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def options_of(args: argparse.Namespace) -> list[str]:
    """Options of the benchmark; a commit may not know all of them.

    Args:
        args (argparse.Namespace): Of this command.
    """
    options = ['--size', *map(str, args.size)]
    for key in ('images', 'threads'):
        options += [f'--{key}', str(getattr(args, key))]
    return options + (
        [] if args.device == 'cpu' else ['--device', args.device]
    )


def main() -> int:
    """Prints the table, and a line for each round."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('old', help='a commit')
    parser.add_argument('new', help='another')
    parser.add_argument(
        '--only', nargs='*', choices=list(DETECTORS), default=list(DETECTORS)
    )
    parser.add_argument('--rounds', type=int, default=3)
    add_size(parser, (320,))
    add_device(parser)
    parser.add_argument('--images', type=int, default=4)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--work-dir', default='work_dirs/commits')
    args = parser.parse_args()
    check_device(parser, args)
    options = options_of(args)
    work = Path(args.work_dir).resolve()
    folders = [check_out(r, work) for r in (args.old, args.new)]
    found: dict[str, list[list[dict]]] = {}
    for name in args.only:
        found[name] = [[], []]
        for _ in range(args.rounds):
            for side, folder in zip(found[name], folders, strict=True):
                side.append(measure(folder, name, options))
            print(name, [side[-1] for side in found[name]], flush=True)
    print(table(found))
    return 0


if __name__ == '__main__':
    sys.exit(main())
