# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Configs as plain types."""

import copy
from typing import Any


def plain(cfg: Any) -> Any:
    """A deep copy of dicts, lists and scalars without ConfigDict.

    Nor with the scopes that MMEngine puts into what is inherited from a
    package: all parts are of this one.
    """
    if isinstance(cfg, dict):
        return {k: plain(v) for k, v in cfg.items() if k != '_scope_'}
    if isinstance(cfg, list | tuple):
        return [plain(v) for v in cfg]
    return copy.deepcopy(cfg)
