# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Recipes by name or file."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import RENAMED, QuantConfigError, unknown
from .plain import plain

RECIPE_DIR = Path(__file__).parent.parent / 'recipes'
#: keys of a recipe file and of ``quant_cfg``, with their types; what bits
#: may be is checked where they are read
KINDS = dict(
    recipe=str,
    bits=object,
    scope=str,
    rules=list,
    passes=list,
    mix_heads=bool,
    equalize=bool,
    scale_inputs=bool,
    pass_args=dict,
    calibration=dict,
)
KEYS = tuple(KINDS)
FOLD = 'FoldBatchNorm'
#: keys that put a pass right behind ``FOLD``, or take it out; where several
#: are set, their passes come in this order
SWITCHES = dict(
    mix_heads='MixHeads',
    equalize='EqualizeChannels',
    scale_inputs='ScaleInputs',
)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.stem for p in RECIPE_DIR.glob('[a-z]*.py'))


def load_recipe(recipe: str, inside: tuple[Path, ...] = ()) -> dict:
    """Reads a recipe, by name or as a config file.

    Args:
        recipe (str): One of :func:`recipe_names`, or a path to a file with
            the keys of ``quant_cfg``, or with a ``quant_cfg`` and nothing
            else. It may start from another by ``recipe``, whose rules come
            before its own, or inherit by ``_base_``: other keys replace
            those of the base then, and ``[*_base_.passes, ...]`` goes on
            from them. Names that begin with ``_`` are its own.
        inside (tuple[Path, ...]): Files that start from this one; a path is
            taken from the folder of the last.

    Returns:
        dict: Its ``rules``, its ``passes`` with its ``equalize``,
        ``scale_inputs`` and ``pass_args`` put in and, if set, ``bits``,
        ``scope`` and ``calibration``.

    Raises:
        QuantConfigError: If there is no such recipe, it cannot be read,
            starts from itself, or keys are wrong.
    """
    path = _path_of(recipe, inside)
    if path in inside:
        raise QuantConfigError(f'recipe {path}: it starts from itself')
    try:
        found = plain(Config.fromfile(str(path)).to_dict())
    except Exception as error:  # it runs what the user wrote
        raise QuantConfigError(
            f'recipe {path}: {type(error).__name__}: {error}'
        ) from error
    found = {k: v for k, v in found.items() if not k.startswith('_')}
    if list(found) == ['quant_cfg']:  # as --print-recipe prints it
        found = found['quant_cfg']
    found = checked_keys(found, f'recipe {path.name}')
    base = found.pop('recipe', None)
    if base is not None:
        found = joined(load_recipe(base, (*inside, path)), found)
    return with_passes(found)


def _path_of(recipe: str, inside: tuple[Path, ...]) -> Path:
    path = RECIPE_DIR / f'{recipe}.py'
    if path.is_file() and '/' not in str(recipe):
        return path
    path = Path(recipe)
    if inside:
        path = inside[-1].parent / path
    if path.suffix not in ('.py', '.json', '.yaml', '.yml') or (
        not path.is_file()
    ):
        raise QuantConfigError(
            unknown('recipe', recipe, recipe_names())
            + ' Or give the path of a recipe file.'
        )
    return path.resolve()


def checked_keys(cfg: Any, where: str = 'quant_cfg') -> dict:
    """A plain copy of a ``quant_cfg`` without the keys that are None.

    Args:
        cfg (Any): As the user wrote it.
        where (str): What it is, for messages.

    Returns:
        dict: Its keys are known, its values of the right type.

    Raises:
        QuantConfigError: If it is no dict, or a key or a type is wrong.
    """
    if not isinstance(cfg, dict):
        example = cfg if isinstance(cfg, str) and cfg else 'uniform'
        raise QuantConfigError(
            f'{where}: expected a dict, got {cfg!r}; write e.g. '
            f"dict(recipe={example!r}, bits='w8a8')"
        )
    cfg = {k: v for k, v in plain(cfg).items() if v is not None}
    for key, value in cfg.items():
        if key not in KEYS:
            raise QuantConfigError(f'{where}: ' + unknown('key', key, KEYS))
        if not isinstance(value, KINDS[key]):
            raise QuantConfigError(
                f'{where}.{key}: expected a {KINDS[key].__name__}, '
                f'got {value!r}'
            )
    return cfg


def joined(base: dict, cfg: dict) -> dict:
    """What is written beside a recipe, on it.

    Args:
        base (dict): From :func:`load_recipe`.
        cfg (dict): Checked keys. Rules are added after those of the
            recipe, passes and scope replace its own, calibration is merged
            key by key.

    Returns:
        dict: Checked keys without ``recipe``.
    """
    out = {**base, **cfg}
    out['rules'] = [*base.get('rules', []), *cfg.get('rules', [])]
    calibration = {
        **base.get('calibration', {}),
        **cfg.get('calibration', {}),
    }
    if calibration:
        out['calibration'] = calibration
    return out


def with_passes(cfg: dict) -> dict:
    """Puts what is said of single passes into the passes.

    Args:
        cfg (dict): Checked keys.

    Returns:
        dict: Without ``pass_args`` and the keys of :data:`SWITCHES`.

    Raises:
        QuantConfigError: If a pass that they speak of is not there.
    """
    said = {'pass_args', *SWITCHES}
    out = {k: v for k, v in cfg.items() if k not in said}
    passes = cfg.get('passes', [])
    for key in reversed(SWITCHES):
        if key in cfg:
            passes = switched(passes, key, cfg[key])
    passes = pass_args(passes, cfg.get('pass_args', {}))
    return {**out, 'passes': passes} if passes else out


def switched(passes: list[dict], key: str, wanted: bool) -> list[dict]:
    """Passes with or without one that changes the float detector.

    Args:
        passes (list[dict]): Config of each pass.
        key (str): One of :data:`SWITCHES`.
        wanted (bool): Whether it is to be there: behind ``FoldBatchNorm``,
            and behind the passes of the switches before it.

    Raises:
        QuantConfigError: If there is no ``FoldBatchNorm`` before it.
    """
    kind = SWITCHES[key]
    kinds = [p.get('type') if isinstance(p, dict) else None for p in passes]
    if not wanted:
        return [p for p, one in zip(passes, kinds, strict=True) if one != kind]
    if kind in kinds:
        return passes
    if FOLD not in kinds:
        raise QuantConfigError(
            f'{key}: these passes have no {FOLD}, behind which {kind} goes; '
            f"add dict(type='{FOLD}')"
        )
    first = [FOLD, *list(SWITCHES.values())[: list(SWITCHES).index(key)]]
    at = max(kinds.index(one) for one in first if one in kinds) + 1
    return [*passes[:at], dict(type=kind), *passes[at:]]


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
                'pass_args: '
                + unknown('pass of this recipe', kind, present, RENAMED)
                + ' Remove it, or give a recipe with that pass.'
            )
        if not isinstance(args, dict):
            raise QuantConfigError(
                f'pass_args.{kind}: expected a dict, got {args!r}'
            )
    return [
        {**p, **changes.get(p.get('type'), {})} if isinstance(p, dict) else p
        for p in passes
    ]
