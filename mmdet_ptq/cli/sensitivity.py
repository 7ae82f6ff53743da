# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Says which layers and parts of a detector lose most by quantization."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import RUNNERS
from rich.console import Console

from ..engine.environment import tolerate
from ..engine.sensitivity import SensitivityRun
from ..engine.sensitivity_options import SensitivityOptions
from ..engine.sensitivity_outputs import print_worst, write_outputs
from ..errors import PTQError
from ..passes.measure_sensitivity import SCORES
from .arguments import add_calibration, add_run, add_what
from .config import load_config


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Reads the command line; see :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_what(parser)
    add_calibration(parser)
    add_run(parser)
    _add_own(parser)
    # one process, which tests nothing
    parser.set_defaults(launcher='none', no_float_eval=True, no_report=True)
    return parser.parse_args(argv)


def _add_own(parser: argparse.ArgumentParser) -> None:
    """What this command alone has."""
    defaults = SensitivityOptions()
    scores = '; '.join(f'{k}: {words}' for k, words in SCORES.items())
    parser.add_argument(
        '--score', default=defaults.score, help=f'{scores}; default output'
    )
    parser.add_argument(
        '--rank-num',
        type=int,
        default=defaults.rank_num,
        help='training images for scores that need no annotations; default 8',
    )
    parser.add_argument(
        '--verify-num',
        type=int,
        default=defaults.verify_num,
        help='training images with annotations, for AP; default 64',
    )
    parser.add_argument(
        '--check',
        type=int,
        metavar='N',
        default=defaults.check,
        help='score N layers by AP too, and say how well the ranks agree; '
        'default 0',
    )
    parser.add_argument(
        '--keep',
        type=int,
        metavar='N',
        default=defaults.keep,
        help='suggest more bits for the N worst layers; default 3',
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
        options = SensitivityOptions(
            score=args.score,
            rank_num=args.rank_num,
            verify_num=args.verify_num,
            check=args.check,
            keep=args.keep,
            resume=args.resume,
        )
        runner = RUNNERS.build(load_config(args))
        run, folder = SensitivityRun(runner, options), Path(runner.work_dir)
        found = run.measure()
        print_worst(Console(), found, options.score)
        # what comes next may take as long, and may be stopped
        write_outputs(folder, found, options.score)
        for line in write_outputs(folder, run.suggest(), options.score):
            print(line)
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
