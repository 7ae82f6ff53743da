# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How many steps the passes of a ``quant_cfg`` learn."""

from ..quant_cfg import parse_quant_cfg
from ..registry import PASSES, arguments_of, find_class


def learning_passes(quant_cfg: dict) -> list[str]:
    """Types of the passes that have ``iters``.

    Args:
        quant_cfg (dict): Not yet parsed.
    """
    kinds = [p['type'] for p in parse_quant_cfg(quant_cfg).passes]
    return [
        kind
        for kind in kinds
        if 'iters' in arguments_of(find_class(PASSES, kind))
    ]


def with_iters(quant_cfg: dict, iters: int) -> dict:
    """``pass_args`` with these steps for every pass that has any.

    Args:
        quant_cfg (dict): Not yet parsed.
        iters (int): Steps for each unit.
    """
    args = quant_cfg.get('pass_args', {})
    kinds = learning_passes(quant_cfg)
    return args | {k: {**args.get(k, {}), 'iters': iters} for k in kinds}
