# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizes a trained MMDetection detector and tests it before and after."""

import argparse
import os
import os.path as osp
import pprint
import sys

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS

import mmdet_ptq  # noqa: F401
from mmdet_ptq.errors import PTQError, QuantConfigError
from mmdet_ptq.quant_cfg import parse_quant_cfg, recipe_names


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        help='config of the float detector; any '
        'MMDetection config, unmodified',
    )
    parser.add_argument('checkpoint', nargs='?', help='its float checkpoint')
    parser.add_argument(
        '--recipe',
        help="recipe name or file; default: the config's "
        f'quant_cfg, else "uniform" ({", ".join(recipe_names())})',
    )
    parser.add_argument(
        '--bits',
        help='w<bits>a<bits>[s<bits>], 2 to 8: weights, '
        'activations, attention softmax; default w8a8',
    )
    parser.add_argument(
        '--work-dir',
        help='where artefact, result and logs '
        'go; default ./work_dirs/<config name>',
    )
    parser.add_argument(
        '--calib-num',
        type=int,
        help='number of calibration images; default 32',
    )
    parser.add_argument(
        '--calib-source',
        help='"train", "test" or a folder of images; default train',
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
        '--print-recipe',
        action='store_true',
        help='print the spelled-out quant_cfg and exit',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='load '
        'a checkpoint that holds arbitrary objects, which '
        'can run code',
    )
    parser.add_argument(
        '--launcher',
        default='none',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='job launcher for several processes',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config, key=value',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by torch.distributed.launch',
    )
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def quant_cfg_of(cfg: Config, args: argparse.Namespace) -> dict:
    """The config's ``quant_cfg`` with the command line over it."""
    found = cfg.get('quant_cfg')
    if found is not None and not isinstance(found, dict):
        raise QuantConfigError(f'quant_cfg: expected a dict, got {found!r}')
    quant_cfg = found.to_dict() if found is not None else {}
    if args.recipe is not None:
        quant_cfg = {
            k: v for k, v in quant_cfg.items() if k in ('bits', 'calibration')
        }
        quant_cfg['recipe'] = args.recipe
    elif not quant_cfg:
        quant_cfg['recipe'] = 'uniform'
    if args.bits is not None:
        quant_cfg['bits'] = args.bits
    elif found is None:
        quant_cfg.setdefault('bits', 'w8a8')
    given = dict(num_samples=args.calib_num, source=args.calib_source)
    given = {k: v for k, v in given.items() if v is not None}
    if given:
        quant_cfg['calibration'] = {
            **(quant_cfg.get('calibration') or {}),
            **given,
        }
    return quant_cfg


def load_config(args: argparse.Namespace) -> Config:
    """The detector's config, made into one that PTQRunner runs."""
    if not osp.isfile(args.config):
        raise QuantConfigError(f'config {args.config} does not exist')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:
        # whatever a config's own code raises
        raise QuantConfigError(
            f'config {args.config} cannot be loaded: {type(error).__name__}: '
            f'{error}'
        ) from error
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.quant_cfg = quant_cfg_of(cfg, args)
    cfg.runner_type = 'PTQRunner'
    # so that MMDetection's own tools take the config in the work dir
    imports = dict(cfg.get('custom_imports') or dict(imports=[]))
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = list(dict.fromkeys([*names, 'mmdet_ptq']))
    imports.setdefault('allow_failed_imports', False)
    cfg.custom_imports = imports
    cfg.launcher = args.launcher
    cfg.load_from = args.checkpoint
    if args.device:
        cfg.device = args.device
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        stem = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', stem)
    options = dict(cfg.get('ptq_cfg') or {})
    options.setdefault('float_eval', not args.no_float_eval)
    if args.no_float_eval:
        options['float_eval'] = False
    options['resume'] = args.resume or options.get('resume', False)
    options['trust_checkpoint'] = args.trust_checkpoint or options.get(
        'trust_checkpoint', False
    )
    cfg.ptq_cfg = options
    return cfg


def main() -> int:
    """Runs the command; returns the exit code."""
    args = parse_args()
    try:
        cfg = load_config(args)
        quant = parse_quant_cfg(cfg.quant_cfg.to_dict())
        if args.print_recipe:
            print(
                'quant_cfg = '
                + pprint.pformat(quant.to_dict(), sort_dicts=False, width=79)
            )
            return 0
        if args.checkpoint is None:
            raise QuantConfigError(
                'no checkpoint: usage: tools/ptq.py CONFIG CHECKPOINT'
            )
        runner = RUNNERS.build(cfg)
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


if __name__ == '__main__':
    sys.exit(main())
