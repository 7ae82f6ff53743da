# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What identifies a run: progress of anything else is not used."""

import hashlib
import json

import torch
from mmengine.config import Config

from ..artefact import as_float
from ..quant_cfg import QuantConfig
from ..version import __version__

#: blocks of the config that a result depends on
BLOCKS = ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator')


def fingerprint_of(
    digest: str, quant: QuantConfig, cfg: Config, world_size: int
) -> str:
    """Hash of checkpoint, settings, data and versions.

    Args:
        digest (str): SHA-256 of the float checkpoint.
        quant (QuantConfig): The checked ``quant_cfg``.
        cfg (Config): The detector's config.
        world_size (int): Number of ranks.

    Returns:
        str: SHA-256 in hex.
    """
    plain = cfg.to_dict()
    # a config in a work dir says the same of a detector in other words
    plain['model'] = as_float(plain['model'])
    text = json.dumps(
        [
            digest,
            quant.to_dict(),
            world_size,
            torch.__version__,
            __version__,
            *(plain.get(block) for block in BLOCKS),
        ],
        sort_keys=True,
        default=str,
    )
    return hashlib.sha256(text.encode()).hexdigest()
