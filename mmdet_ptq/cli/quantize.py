# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes a trained MMDetection detector and tests it before and after."""

import argparse
import os
import pprint
import shlex
import sys
from collections.abc import Sequence

from mmengine.registry import RUNNERS

from ..engine.auto import goal_of
from ..engine.environment import tolerate
from ..errors import PTQError, QuantConfigError
from ..quant_cfg import parse_quant_cfg, replaced_rules
from .arguments import add_calibration, add_run, add_what
from .auto import add_goals, check_no_goal, run_auto
from .config import asked_of, load_config


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Reads the command line; see :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_what(parser)
    add_calibration(parser)
    add_run(parser)
    _add_own(parser)
    add_goals(parser)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def _add_own(parser: argparse.ArgumentParser) -> None:
    """What this command alone has."""
    parser.add_argument(
        '--print-recipe',
        action='store_true',
        help='print the quant_cfg with every default and exit; saved as a '
        'file it is a recipe',
    )
    parser.add_argument(
        '--no-float-eval',
        action='store_true',
        help='do not test the float model',
    )
    parser.add_argument(
        '--no-report',
        action='store_true',
        help='do not make report.html, nor compare layers for it',
    )
    parser.add_argument(
        '--launcher',
        default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='job launcher for several processes',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by torch.distributed.launch',
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Runs the command; returns the exit code.

    Args:
        argv (Sequence[str], optional): Its arguments. Defaults to those of
            the process.
        prog (str, optional): What it is called in its help.
    """
    tolerate(sys.stdout, sys.stderr)
    args = parse_args(argv, prog)
    try:
        goal = goal_of(vars(args))
        if goal is not None:
            return run_auto(args, goal, argv, prog)
        check_no_goal(args)
        cfg = load_config(args)
        quant = parse_quant_cfg(cfg.quant_cfg.to_dict())
        for note in replaced_rules(args.config):
            print(f'note: {note}', file=sys.stderr)
        if args.print_recipe:
            found = quant.spelled_out()
            text = pprint.pformat(found, sort_dicts=False, width=79)
            print(f'quant_cfg = {text}')
            return 0
        if cfg.get('load_from') is None:
            raise QuantConfigError(
                'no checkpoint: give it after CONFIG, or set load_from in '
                'the config'
            )
        runner = RUNNERS.build(cfg)
        runner.asked = asked_of(args, quant)
        if argv is not None:
            runner.command = shlex.join([*(prog or '').split(), *argv])
        runner.test()
    except PTQError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            '\nstopped; run the same command with --resume to go on',
            file=sys.stderr,
        )
        return 130
    return 0
