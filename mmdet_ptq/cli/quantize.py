# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes a trained MMDetection detector and tests it before and after."""

import argparse
import os
import pprint
import shlex
import sys
from collections.abc import Sequence

from mmengine.config import DictAction
from mmengine.registry import RUNNERS

from ..engine.environment import tolerate
from ..errors import PTQError, QuantConfigError
from ..quant_cfg import (
    SCOPES,
    parse_quant_cfg,
    recipe_names,
    replaced_rules,
)
from .config import asked_of, load_config


def parse_args(
    argv: Sequence[str] | None = None, prog: str | None = None
) -> argparse.Namespace:
    """Reads the command line; see :func:`main`."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    _add_what(parser)
    _add_calibration(parser)
    _add_run(parser)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def _add_what(parser: argparse.ArgumentParser) -> None:
    """Which detector, and what becomes of it."""
    parser.add_argument(
        'config',
        help='config of the float detector; any MMDetection config, '
        'unmodified, a file or mmdet::<config>',
    )
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='its float checkpoint, a path, a URL or mmdet::<config>; '
        "default: the config's load_from",
    )
    parser.add_argument(
        '--recipe',
        help="recipe name or file; default: the config's quant_cfg, else "
        f'"uniform" ({", ".join(recipe_names())})',
    )
    parser.add_argument(
        '--bits',
        help='w<bits>a<bits>[s<bits>], 2 to 8: weights, activations, inputs '
        'that come from a softmax, e.g. w4a4s3; default w8a8',
    )
    parser.add_argument(
        '--scope',
        help='which layers are quantized, and which of them in 8 bits; '
        f'default: as the recipe says ({", ".join(SCOPES)})',
    )
    parser.add_argument(
        '--iters',
        type=int,
        help='steps of a reconstruction for each unit; default: as the '
        'recipe says',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, key=value',
    )
    parser.add_argument(
        '--print-recipe',
        action='store_true',
        help='print the quant_cfg with every default and exit; saved as a '
        'file it is a recipe',
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    """On which images."""
    parser.add_argument(
        '--calib-num',
        type=int,
        help='number of calibration images; default 32',
    )
    parser.add_argument(
        '--calib-source',
        help='"train", "test" or a folder of images; default train',
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Where and how it runs."""
    parser.add_argument(
        '--work-dir',
        help='where artefact, result and logs go; default '
        './work_dirs/<config name>',
    )
    parser.add_argument(
        '--device', help='e.g. cpu or cuda:0; default: a GPU if there is one'
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on where a killed run stopped',
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
        '--trust-checkpoint',
        action='store_true',
        help='load a checkpoint that holds arbitrary objects, which can run '
        'code',
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
