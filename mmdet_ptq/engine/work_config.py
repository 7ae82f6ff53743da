# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The config in a work dir, on which quantized.pth can be tested again."""

import inspect
from pydoc import locate
from typing import Any

from mmengine import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry

from ..artefact import as_quantizable


def import_package(cfg: Config) -> None:
    """Makes whoever reads a config import this package.

    Args:
        cfg (Config): Changed in place.
    """
    imports = cfg.get('custom_imports') or dict(imports=[])
    names = imports['imports']
    names = [names] if isinstance(names, str) else list(names)
    imports['imports'] = list(dict.fromkeys([*names, 'mmdet_ptq']))
    imports.setdefault('allow_failed_imports', False)
    cfg.custom_imports = imports


def work_config(cfg: Config) -> Config:
    """What is written into the work dir.

    MMDetection's tools, ``init_detector`` and ``DetInferencer`` take it
    together with the artefact. Classes and functions of a new-style config
    become names that mean the same.

    Args:
        cfg (Config): Of the run.

    Returns:
        Config: Of plain types.
    """
    # MMEngine has made paths of what was imported in the config
    written = Config(_named(cfg.to_dict()))
    import_package(written)
    written.runner_type = 'PTQRunner'
    written.model = as_quantizable(written.model.to_dict())
    return written


def _named(value: Any) -> Any:
    """A value of a config with names in the place of objects."""
    if isinstance(value, dict):
        return {k: _named(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_named, value))
    if inspect.isclass(value) or inspect.isfunction(value):
        value = f'{value.__module__}.{value.__qualname__}'
    if isinstance(value, str) and value.startswith('mmcv.ops.'):
        return _name_in_ops(value)
    return value


def _name_in_ops(path: str) -> str:
    """Registries import a path; who looks into mmcv.ops wants a bare name.

    MMDetection evaluates the name of an NMS in the file that defines it,
    and takes a RoI layer from mmcv.ops by its name.
    """
    found = locate(path)
    known = [r for r in vars(registries).values() if isinstance(r, Registry)]
    if any(found in one.module_dict.values() for one in known):
        return path
    return path.split('.')[-1]
