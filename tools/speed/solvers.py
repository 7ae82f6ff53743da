# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Times the solvers on units of a real backbone and on many made-up ones.

Units are groups of output channels of the linear layers of a config's
backbone; curves are random, falling about fourfold a bit::

    python -m tools.speed.solvers

prints a table: seconds, memory that was taken on the way, mean bits used,
and distortion over that of dynamic programming. HiGHS (``milp``) is stopped
after 20 seconds of wall time where there are thousands of units, and the table
says so.
"""

import argparse
import sys
import time
import tracemalloc
import warnings

import numpy as np
from torch import nn

from mmdet_ptq.engine.machine import machine_line
from mmdet_ptq.solvers import (
    METHODS,
    Problem,
    Solution,
    mean_bits_problem,
    solve,
)
from mmdet_ptq.testing import random_detector

CONFIG = 'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'
#: with more units than this HiGHS is stopped after so many seconds
MANY, TIME_LIMIT = 1000, 20.0


def weight_groups(model: nn.Module, group_size: int) -> list[int]:
    """Sizes of the groups of output channels of linear layers.

    Args:
        model (nn.Module): What holds the layers.
        group_size (int): Channels of a group; the last of a layer may have
            fewer.

    Returns:
        list[int]: Weights of each group, in the order of the layers.
    """
    found = []
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            for start in range(0, rows, group_size):
                found.append(min(group_size, rows - start) * columns)
    return found


def curves(sizes: np.ndarray, bits: list[int], seed: int) -> np.ndarray:
    """Distortions ``[U, K]`` that fall about fourfold a bit."""
    rng = np.random.default_rng(seed)
    scale = rng.lognormal(0, 2, len(sizes)) * sizes
    spread = rng.lognormal(0, 0.3, (len(sizes), len(bits)))
    return scale[:, None] * 4.0 ** -np.array(bits) * spread


def measure(
    problem: Problem, method: str, repeats: int, **options: float
) -> tuple[Solution, float, float]:
    """Solves a problem several times.

    Returns:
        tuple[Solution, float, float]: What was found, the least seconds of
        processor time, and MiB at the peak that Python and numpy took.
    """
    times = []
    for _ in range(repeats):
        start = time.process_time()
        found = solve(problem, method, **options)
        times.append(time.process_time() - start)
    tracemalloc.start()
    solve(problem, method, **options)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return found, min(times), peak


def parse_args(words: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--config', default=CONFIG)
    parser.add_argument('--group-size', type=int, default=128)
    parser.add_argument('--units', type=int, default=5000)
    parser.add_argument('--bits', type=int, nargs='+', default=range(2, 9))
    parser.add_argument('--budgets', type=float, nargs='+', default=[3.5, 4.5])
    parser.add_argument('--methods', nargs='+', default=list(METHODS))
    parser.add_argument('--repeats', type=int, default=3)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Prints the table."""
    args = parse_args(sys.argv[1:] if words is None else words)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = random_detector(args.config).backbone
    rng = np.random.default_rng(0)
    inventories = {
        'backbone': np.array(weight_groups(model, args.group_size)),
        'multiples of 3072': 3072 * rng.integers(1, 33, args.units),
        'any sizes': rng.integers(1, 10**6, args.units),
    }
    print(f'{machine_line()}; {len(args.bits)} widths\n')
    print('| units | sizes | budget | method | s | MiB | bits | over dp |')
    print('|--:|---|--:|---|--:|--:|--:|--:|')
    for name, sizes in inventories.items():
        for budget in args.budgets:
            table = curves(sizes, list(args.bits), 1)
            problem = mean_bits_problem(sizes, args.bits, table, budget)
            best = solve(problem, 'dp').distortion
            for method in args.methods:
                slow = method == 'milp' and len(sizes) > MANY
                found, spent, peak = measure(
                    problem,
                    method,
                    1 if slow else args.repeats,
                    **(dict(time_limit=TIME_LIMIT) if slow else {}),
                )
                shown = method if found.in_time else f'{method}, stopped'
                print(
                    f'| {len(sizes)} | {name} | {budget:g} | {shown} '
                    f'| {spent:.3f} | {peak:.1f} '
                    f'| {found.costs["mean bits"]:.4f} '
                    f'| {found.distortion / best - 1:+.2%} |',
                    flush=True,
                )
    return 0


if __name__ == '__main__':
    sys.exit(main())
