# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""``mmdet-ptq quantize`` with a goal in the place of recipe and bits."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import RUNNERS
from rich.console import Console

from ..engine.auto import AutoOptions, AutoRun, Goal
from ..engine.auto.outputs import print_trials, words_of, write_outputs
from ..engine.auto.run import own_settings
from ..engine.auto.search import RECIPES
from ..errors import QuantConfigError
from ..quant_cfg import checked_keys
from .config import load_config, read_config


def add_goals(parser: argparse.ArgumentParser) -> None:
    """Options of auto mode."""
    group = parser.add_argument_group(
        'a goal, in the place of --recipe and --bits',
        'recipe and widths are looked for on training images held out',
    )
    group.add_argument(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help='fewest bit operations that lose at most so many points of AP, '
        'e.g. 0.5',
    )
    group.add_argument(
        '--target-size',
        type=float,
        metavar='MB',
        help='best AP with parameters of at most so many 10^6 bytes',
    )
    group.add_argument(
        '--target-bops',
        type=float,
        metavar='G',
        help='best AP with at most so many 10^9 bit operations an image',
    )
    group.add_argument(
        '--recipes',
        metavar='NAMES',
        help='what is tried, in this order, with commas between; default '
        f'{",".join(RECIPES)}, of which the last takes longest',
    )
    group.add_argument(
        '--rank-num',
        type=int,
        help=f'images for what layers lose; default {AutoOptions.rank_num}',
    )
    group.add_argument(
        '--verify-num',
        type=int,
        help=f'images for AP; default {AutoOptions.verify_num}',
    )


def check_no_goal(args: argparse.Namespace) -> None:
    """Refuses options of a goal where there is none.

    Args:
        args (Namespace): The command line.

    Raises:
        QuantConfigError: If there is one.
    """
    for key in ('recipes', 'rank_num', 'verify_num'):
        if getattr(args, key) is not None:
            raise QuantConfigError(
                f'--{key.replace("_", "-")} is for a goal, and none is '
                'given; add --max-drop, --target-size or --target-bops, or '
                'leave it out'
            )


def run_auto(
    args: argparse.Namespace,
    goal: Goal,
    argv: Sequence[str] | None,
    prog: str | None,
) -> int:
    """Looks for the goal, then makes and tests what was found.

    Args:
        args (Namespace): The command line.
        goal (Goal): What it asks for.
        argv (Sequence[str], optional): Its words.
        prog (str, optional): What it is called.

    Returns:
        int: Exit code; 1 if the goal is not reached.

    Raises:
        PTQError: One of its subclasses, on whatever is wrong.
    """
    if args.launcher != 'none':
        raise QuantConfigError(
            f'--launcher {args.launcher}: a goal is looked for by one '
            'process; leave it out'
        )
    given = dict(rank_num=args.rank_num, verify_num=args.verify_num)
    if args.recipes is not None:
        names = [name.strip() for name in args.recipes.split(',')]
        given['recipes'] = [name for name in names if name]
    options = AutoOptions(
        goal,
        iters=args.iters,
        resume=args.resume,
        **{key: one for key, one in given.items() if one is not None},
    )
    plain = read_config(args.config)
    if args.cfg_options is not None:
        plain.merge_from_dict(args.cfg_options)
    found = plain.get('quant_cfg')
    own_settings({} if found is None else checked_keys(found))
    # what is parsed with the config has to be whole
    args.recipe, args.bits, args.iters = 'uniform', 'w8a8', None
    cfg = load_config(args)
    own = {
        k: v
        for k, v in cfg.quant_cfg.to_dict().items()
        if k not in ('recipe', 'bits')
    }
    runner = RUNNERS.build(cfg)
    run = AutoRun(runner, own, options)
    best = run.run()
    chosen = best or goal.nearest(run.trials)
    told = words_of(run, chosen, best is not None)
    page, config = write_outputs(run, chosen, told)
    print_trials(Console(), run, chosen)
    print(*told, f'What was tried: {page}', sep='\n')
    if best is None:
        print(
            f'To make it all the same: mmdet-ptq quantize {config} CHECKPOINT',
            file=sys.stderr,
        )
        return 1
    runner.choose(run.quant_cfg(best))
    stopped = Path(runner.work_dir) / 'ptq_resume_0.pth'
    runner.options['resume'] = options.resume and stopped.is_file()
    if argv is not None:
        runner.command = shlex.join([*(prog or '').split(), *argv])
    runner.test()
    print(f'The config that makes the same: {config}')
    return 0
