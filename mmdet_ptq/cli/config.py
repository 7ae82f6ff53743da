# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a command line makes of a detector's config."""

import argparse
import os.path as osp

from mmengine.config import Config
from mmengine.hub import get_config

from ..engine.work_config import import_package
from ..errors import QuantConfigError
from ..quant_cfg import QuantConfig


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


def read_config(name: str) -> Config:
    """Reads a config file, or ``mmdet::...`` of an installed package."""
    if '::' not in name and not osp.isfile(name):
        raise QuantConfigError(f'config {name} does not exist')
    try:
        return get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:
        # whatever a config's own code raises
        raise QuantConfigError(
            f'config {name} cannot be loaded: {type(error).__name__}: {error}'
        ) from error


def asked_of(args: argparse.Namespace, quant: QuantConfig) -> dict:
    """What the command line itself says of the quantization.

    Args:
        args (argparse.Namespace): The arguments.
        quant (QuantConfig): What they and the config come to.

    Returns:
        dict: Parts of the spelled-out ``quant_cfg``.
    """
    spelled = quant.to_dict()
    options = args.cfg_options or {}
    if any(key.split('.')[0] == 'quant_cfg' for key in options):
        return spelled
    asked = {}
    if args.recipe is not None:
        asked.update(rules=spelled['rules'], passes=spelled['passes'])
    if args.bits is not None:
        asked['bits'] = spelled['bits']
    given = dict(num_samples=args.calib_num, source=args.calib_source)
    given = {k: v for k, v in given.items() if v is not None}
    if given:
        asked['calibration'] = given
    return asked


def load_config(args: argparse.Namespace) -> Config:
    """The detector's config, made into one that PTQRunner runs."""
    cfg = read_config(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg.quant_cfg = quant_cfg_of(cfg, args)
    cfg.runner_type = 'PTQRunner'
    # so that MMDetection's own tools take the config in the work dir
    import_package(cfg)
    cfg.launcher = args.launcher
    if args.checkpoint is not None:
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
