# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Writes docs/results/auto.md: what ``--max-drop`` reached on some detectors.

From the work dirs of runs of ``mmdet-ptq quantize CONFIG CHECKPOINT
--max-drop POINTS --work-dir WORK_DIR``::

    python -m tools.docs.make_auto_doc WORK_DIR ...
"""

import argparse
import json
import re
import sys
from pathlib import Path

from mmdet_ptq.engine.auto.goal import Goal, Trial
from mmdet_ptq.engine.machine import machine_line

OUT = Path('docs/results/auto.md')
GOAL = re.compile(r'at most ([\d.]+) points')
HEAD = (
    'detector',
    'most points lost',
    'found',
    'points lost, held out',
    'points lost, test',
    'G BOPs, w8a8',
    'G BOPs, found',
    'saved',
    'tried',
    'minutes',
)


def row(folder: Path) -> list[str]:
    """What came of one search.

    Args:
        folder (Path): Its work dir. Where the goal was not reached, there is
            no test, and ``found`` is what comes nearest.

    Returns:
        list[str]: A cell for each of :data:`HEAD`. Minutes are those of all
        that was tried and of the last run.

    Raises:
        ValueError: If the goal was another one than ``--max-drop``.
    """
    auto = json.loads((folder / 'auto.json').read_text())
    points = GOAL.search(auto['about']['title'])
    if points is None:
        raise ValueError(f'{folder}: not a search with --max-drop')
    goal = Goal('max_drop', float(points[1]) / 100)
    trials = [Trial(**one) for one in auto['trials'].values()]
    best = goal.best(trials)
    found = best or goal.nearest(trials)
    wide = next(t for t in trials if t.bits == 'w8a8' and not t.scope)
    seconds, lost = sum(t.seconds for t in trials), ''
    if best is not None:
        last = json.loads((folder / 'ptq_result.json').read_text())
        seconds += sum(last['seconds'].values())
        name = auto['float']['metric']
        lost = f'{100 * (last["float"][name] - last["quantized"][name]):.1f}'
    return [
        Path(auto['about']['config']).stem,
        points[1],
        found.title if best else f'none; nearest: {found.title}',
        f'{100 * found.drop:.1f}',
        lost,
        f'{wide.bops / 1e9:.1f}',
        f'{found.bops / 1e9:.1f}',
        f'{1 - found.bops / wide.bops:.0%}',
        str(len(trials)),
        f'{seconds / 60:.0f}',
    ]


def page(folders: list[Path]) -> str:
    """The page.

    Args:
        folders (list[Path]): Work dirs of the searches.
    """
    rows = [HEAD, ['---'] * len(HEAD), *map(row, folders)]
    return '\n'.join(
        [
            '# auto',
            '',
            'Fewest bit operations (BOPs) with at most so many points of box '
            'AP less. Made by `mmdet-ptq quantize CONFIG CHECKPOINT '
            '--max-drop POINTS --recipes RECIPES --work-dir WORK_DIR` and '
            f'`python -m tools.docs.make_auto_doc WORK_DIR ...` on '
            f'{machine_line()}, beside other jobs.',
            '',
            *(f'| {" | ".join(cells)} |' for cells in rows),
            '',
        ]
    )


def main(words: list[str] | None = None) -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('runs', type=Path, nargs='+', metavar='WORK_DIR')
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args(words)
    args.out.write_text(page(args.runs))
    return 0


if __name__ == '__main__':
    sys.exit(main())
