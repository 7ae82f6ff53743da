# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a command line makes of a detector's config."""

import argparse
import os.path as osp

from mmengine.config import Config

from ..errors import QuantConfigError


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


def _reason(error: BaseException) -> str:
    """An error in words; of failed imports what failed in the end.

    MMEngine says only that there was one, and lists ``sys.path``.
    """
    chain = [error]
    while isinstance(error, ImportError):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        chain.append(error := inner)
    *before, last = chain
    told = f'{type(last).__name__}: {last}'
    return f'{before[-1]}: {told}' if before else told


def load_config(args: argparse.Namespace) -> Config:
    """The detector's config, made into one that PTQRunner runs."""
    if not osp.isfile(args.config):
        raise QuantConfigError(f'config {args.config} does not exist')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:
        # whatever a config's own code raises
        raise QuantConfigError(
            f'config {args.config} cannot be loaded: {_reason(error)}'
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
