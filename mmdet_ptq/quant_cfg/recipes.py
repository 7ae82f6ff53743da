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
            ``rules`` and ``passes`` (which may inherit by ``_base_``).

    Returns:
        dict: Its ``rules``, ``passes`` and, if set, ``bits`` and
        ``calibration``.

    Raises:
        QuantConfigError: If there is no such recipe, or keys are wrong.
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
    found = plain(Config.fromfile(str(path)).to_dict())
    for key in found:
        if key not in RECIPE_KEYS:
            raise QuantConfigError(
                f'recipe {path.name}: ' + unknown('key', key, RECIPE_KEYS)
            )
    return found


def plain(cfg: Any) -> Any:
    """A deep copy of dicts, lists and scalars without ConfigDict."""
    if isinstance(cfg, dict):
        return {k: plain(v) for k, v in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [plain(v) for v in cfg]
    return copy.deepcopy(cfg)
