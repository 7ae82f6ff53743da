# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What a config loses of the configs that it inherits from."""

from mmengine.config import Config


def replaced_rules(filename: str) -> list[str]:
    """Rules of a config's bases that its own ``quant_cfg`` replaces.

    In configs a list replaces the one of the base. That may be meant, and
    is not seen: so it is told.

    Args:
        filename (str): A config file that can be loaded, or
            ``package::config`` of an installed package.

    Returns:
        list[str]: A sentence for each base with rules that are gone.
    """
    if '::' in filename:
        filename, _ = Config._get_cfg_path(filename, '')
    kept = _rules(filename)
    if kept is None:
        return []
    notes = []
    for base in Config._get_base_files(filename):
        path, _ = Config._get_cfg_path(base, filename)
        gone = [rule for rule in _rules(path) or [] if rule not in kept]
        if gone:
            notes.append(
                f'{filename}: its quant_cfg.rules replace those of {base}, '
                f'{", ".join(map(repr, gone))}; to keep them write '
                'rules=[*_base_.quant_cfg.rules, ...]'
            )
    return notes


def _rules(filename: str) -> list | None:
    """The rules beside a recipe, bases included; None if it has none."""
    found = Config.fromfile(filename).get('quant_cfg')
    rules = found.get('rules') if isinstance(found, dict) else None
    return rules if isinstance(rules, list) else None
