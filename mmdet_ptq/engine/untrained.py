# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Detectors with the weights that a training starts from."""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from ..errors import PTQError


def untrained(cfg: Config) -> nn.Module:
    """Builds a detector as for a training from nothing.

    Args:
        cfg (Config): Of the detector.

    Returns:
        nn.Module: In eval mode, on the CPU; nothing is downloaded.

    Raises:
        PTQError: If it cannot be built.
    """
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    # MMEngine logs a line for each parameter
    logging.disable(logging.INFO)
    try:
        model: nn.Module = MODELS.build(
            without_pretrained(copy.deepcopy(cfg.model))
        )
        model.init_weights()
    except Exception as error:
        # whatever the classes of a config raise
        raise PTQError(
            f'the model of {cfg.filename} cannot be built: '
            f'{type(error).__name__}: {error}'
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    # detectors that distil return None here
    model.eval()
    return model


def config_path(path: str | Path) -> Path:
    """Path of a config that MMDetection ships, for ``mmdet::...``."""
    name = str(path)
    if name.startswith('mmdet::'):
        import mmdet

        root = Path(mmdet.__file__).parent / '.mim' / 'configs'
        return root / name.removeprefix('mmdet::')
    return Path(path)


def without_pretrained(cfg: Any) -> Any:
    """Takes out of a config what needs a network or a process group.

    Args:
        cfg (Any): A model config or a part of one; changed in place.

    Returns:
        Any: The same object.
    """
    if isinstance(cfg, dict):
        teacher = cfg.get('teacher_config')
        if isinstance(teacher, str) and not Path(teacher).exists():
            # relative to MMDetection's repository
            teacher = 'mmdet::' + teacher.removeprefix('configs/')
            cfg['teacher_config'] = str(config_path(teacher))
        for key in ('pretrained', 'teacher_ckpt'):
            if isinstance(cfg.get(key), str | dict):
                cfg[key] = None
        if cfg.get('pretrained') is True:
            # what backbones of timm are told
            cfg['pretrained'] = False
        init = cfg.get('init_cfg')
        # the PVT backbones leave the type out
        if isinstance(init, dict) and 'checkpoint' in init:
            cfg['init_cfg'] = None
        if cfg.get('type') == 'MMSyncBN':
            cfg['type'] = 'BN'
        for value in cfg.values():
            without_pretrained(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_pretrained(value)
    return cfg
