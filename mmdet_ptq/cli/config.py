# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a command line makes of a detector's config."""

import argparse
import os.path as osp
from typing import Any

from mmengine.config import Config
from mmengine.hub import get_config

from ..engine.arguments import run_options
from ..engine.steps import learning_passes, with_iters
from ..engine.work_config import import_package
from ..errors import QuantConfigError
from ..quant_cfg import QuantConfig, checked_keys, load_recipe


def quant_cfg_of(cfg: Config, args: argparse.Namespace) -> dict:
    """The config's ``quant_cfg`` with the command line over it.

    A recipe of the command line takes the place of the config's; scope,
    rules and arguments of passes that the config has hold for it as well.

    Args:
        cfg (Config): The detector's config, ``--cfg-options`` in it.
        args (Namespace): The command line.

    Returns:
        dict: Not yet parsed.

    Raises:
        QuantConfigError: If command line and config speak against each
            other.
    """
    found = cfg.get('quant_cfg')
    quant_cfg = {} if found is None else checked_keys(found)
    recipe = args.recipe
    if recipe is None and not quant_cfg:
        recipe = 'uniform'
    if recipe is not None:
        own = load_recipe(recipe).get('bits')
        _check_agree(quant_cfg, recipe, own, args.bits)
        quant_cfg['recipe'] = recipe
        if found is None and own is None:
            quant_cfg['bits'] = 'w8a8'
    if args.bits is not None:
        quant_cfg['bits'] = args.bits
    if args.scope is not None:
        quant_cfg['scope'] = args.scope
    if given := _calibration(args):
        before = quant_cfg.get('calibration', {})
        quant_cfg['calibration'] = {**before, **given}
    if args.iters is not None:
        if not learning_passes(quant_cfg):
            raise QuantConfigError(
                f'--iters {args.iters}: no pass of this recipe learns in '
                'steps; leave it out, or take a recipe with Reconstruct, e.g. '
                'qdrop'
            )
        quant_cfg['pass_args'] = with_iters(quant_cfg, args.iters)
    return quant_cfg


def _calibration(args: argparse.Namespace) -> dict:
    """What the command line says of the calibration images."""
    given = dict(num_samples=args.calib_num, source=args.calib_source)
    return {k: v for k, v in given.items() if v is not None}


def _check_agree(
    quant_cfg: dict, recipe: str, own: str | None, bits: str | None
) -> None:
    """Refuses what a recipe of the command line would silently drop."""
    if 'passes' in quant_cfg:
        raise QuantConfigError(
            f"--recipe {recipe}: the config's quant_cfg has passes of its "
            "own, which would replace the recipe's; leave --recipe out, or "
            'add --cfg-options quant_cfg.passes=None'
        )
    written = quant_cfg.get('bits', own)
    if bits is None and own is not None and written != own:
        raise QuantConfigError(
            f'--recipe {recipe}: it has bits {own!r} and the quant_cfg of '
            f'the config {written!r}; say which by --bits'
        )


def leave_scope(cfg: Any) -> None:
    """Parts of a config of this package are those of MMDetection.

    MMEngine notes of each part in which package its config lies, to look
    its type up there; this package registers no datasets, models or metrics.
    """
    if isinstance(cfg, dict):
        if cfg.get('_scope_') == 'mmdet_ptq':
            del cfg['_scope_']
        cfg = list(cfg.values())
    if isinstance(cfg, list | tuple):
        for one in cfg:
            leave_scope(one)


def read_config(name: str) -> Config:
    """Reads a config file, or ``mmdet::...`` of an installed package."""
    if '::' not in name and not osp.isfile(name):
        raise QuantConfigError(f'config {name} does not exist')
    try:
        return get_config(name) if '::' in name else Config.fromfile(name)
    except Exception as error:
        # whatever a config's own code raises
        raise QuantConfigError(
            f'config {name} cannot be loaded: {_reason(error)}'
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
    said = (args.recipe, args.scope, args.iters)
    if any(one is not None for one in said):
        asked.update(rules=spelled['rules'], passes=spelled['passes'])
    if args.bits is not None:
        asked['bits'] = spelled['bits']
    if given := _calibration(args):
        asked['calibration'] = given
    return asked


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
    cfg = read_config(args.config)
    leave_scope(list(cfg.values()))
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
    run_options(cfg.get('ptq_cfg'))
    options = dict(float_eval=True, resume=False, trust_checkpoint=False)
    options |= cfg.get('ptq_cfg') or {}
    if args.no_float_eval:
        options['float_eval'] = False
    if args.no_report:
        options['report'] = False
    if args.resume:
        options['resume'] = True
    if args.trust_checkpoint:
        options['trust_checkpoint'] = True
    cfg.ptq_cfg = options
    return cfg
