# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What acts where a config says nothing."""

from typing import Any

from ..registry import LEARNERS, LOSSES, OBSERVERS, PASSES, arguments_of
from .plain import plain

#: of passes and of what passes are made of
_PARTS = (PASSES, LEARNERS, LOSSES, OBSERVERS)


def with_defaults(cfg: Any) -> Any:
    """A config with every argument that its parts have.

    Args:
        cfg (Any): Checked configs of passes, or anything inside them.

    Returns:
        Any: A copy. Each dict with a ``type`` has the arguments of that
        class in the order of its signature, those that were not given with
        their defaults. None is a default like others: the class says what
        it takes then.
    """
    if isinstance(cfg, list):
        return [with_defaults(one) for one in cfg]
    if not isinstance(cfg, dict):
        return plain(cfg)
    given = {key: with_defaults(value) for key, value in cfg.items()}
    for registry in _PARTS:
        cls = registry.module_dict.get(cfg.get('type'))
        if cls is not None:
            defaults = {
                name: with_defaults(plain(p.default))
                for name, p in arguments_of(cls).items()
                if name in given or p.default is not p.empty
            }
            return {'type': given['type'], **defaults, **given}
    return given
