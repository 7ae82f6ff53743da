# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Recipes by name or file."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import QuantConfigError, unknown

RECIPE_DIR = Path(__file__).parent.parent / 'recipes'
#: keys of a recipe file
RECIPE_KEYS = ('bits', 'rules', 'passes', 'pass_args', 'calibration')


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.stem for p in RECIPE_DIR.glob('[a-z]*.py'))


def load_recipe(recipe: str) -> dict:
    """Reads a recipe, by name or as a config file.

    Args:
        recipe (str): One of :func:`recipe_names`, or a path to a file with
            ``rules`` and ``passes``. It may inherit by ``_base_``: other
            keys replace those of the base, ``pass_args`` changes single
            arguments of its passes, and ``[*_base_.passes, ...]`` goes on
            from them.

    Returns:
        dict: Its ``rules``, its ``passes`` with its ``pass_args`` put in
        and, if set, ``bits`` and ``calibration``.

    Raises:
        QuantConfigError: If there is no such recipe, it cannot be read, or
            keys are wrong.
    """
    path = RECIPE_DIR / f'{recipe}.py'
    if not path.is_file() or '/' in str(recipe):
        path = Path(recipe)
        if path.suffix not in ('.py', '.json', '.yaml', '.yml') or (
            not path.is_file()
        ):
            raise QuantConfigError(
                unknown('recipe', recipe, recipe_names())
                + ' Or give the path of a recipe file.'
            )
    try:
        found = plain(Config.fromfile(str(path)).to_dict())
    except Exception as error:  # it runs what the user wrote
        raise QuantConfigError(
            f'recipe {path}: {type(error).__name__}: {error}'
        ) from error
    for key in found:
        if key not in RECIPE_KEYS:
            raise QuantConfigError(
                f'recipe {path.name}: ' + unknown('key', key, RECIPE_KEYS)
            )
    changes = found.pop('pass_args', {})
    if changes:
        found['passes'] = pass_args(found.get('passes', []), changes)
    return found


def pass_args(passes: list[dict], changes: dict) -> list[dict]:
    """Changes arguments of the passes of some types.

    Args:
        passes (list[dict]): Config of each pass.
        changes (dict): Arguments by type of pass.

    Returns:
        list[dict]: New configs.

    Raises:
        QuantConfigError: If there is no pass of a type.
    """
    present = [p.get('type') for p in passes if isinstance(p, dict)]
    for kind, args in changes.items():
        if kind not in present:
            raise QuantConfigError(
                'pass_args: ' + unknown('pass of this recipe', kind, present)
            )
        if not isinstance(args, dict):
            raise QuantConfigError(
                f'pass_args.{kind}: expected a dict, got {args!r}'
            )
    return [
        {**p, **changes.get(p.get('type'), {})} if isinstance(p, dict) else p
        for p in passes
    ]


def plain(cfg: Any) -> Any:
    """A deep copy of dicts, lists and scalars without ConfigDict."""
    if isinstance(cfg, dict):
        return {k: plain(v) for k, v in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [plain(v) for v in cfg]
    return copy.deepcopy(cfg)
