# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of ``quant_cfg``: everything is checked before a forward."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import QuantConfigError, unknown
from ..registry import PASSES, build_from
from .bits import Bits, parse_bits
from .calibration import Calibration
from .recipes import RECIPE_KEYS, load_recipe, plain, recipe_names
from .rules import check_rule

_KEYS = ('recipe', *RECIPE_KEYS)


@dataclass
class QuantConfig:
    """A checked and expanded ``quant_cfg``.

    Attributes:
        recipe (str): Name of the recipe it came from, or ``'custom'``.
        bits (Bits, optional): Widths where no rule sets any.
        rules (list[dict]): In order; later ones win.
        passes (list[dict]): Config of each pass, in order.
        calibration (Calibration): Which images calibrate.
        user_rules (int): How many rules at the end the user wrote (as
            against the recipe).
    """

    recipe: str
    bits: Bits | None
    rules: list[dict]
    passes: list[dict]
    calibration: Calibration = field(default_factory=Calibration)
    user_rules: int = 0

    def build_passes(self) -> list[Any]:
        """New pass objects, in order."""
        return [
            build_from(PASSES, cfg, f'passes[{i}]')
            for i, cfg in enumerate(self.passes)
        ]

    def to_dict(self) -> dict:
        """The spelled-out ``quant_cfg``, of plain JSON types."""
        out: dict[str, Any] = dict(
            rules=self.rules,
            passes=self.passes,
            calibration=vars(self.calibration),
        )
        if self.bits is not None:
            out = dict(bits=str(self.bits), **out)
        return plain(out)


def parse_quant_cfg(quant_cfg: dict) -> QuantConfig:
    """Expands and checks a ``quant_cfg`` block.

    Rules and passes come from ``recipe`` if one is named; rules given
    beside it are added after the recipe's, passes given beside it replace
    the recipe's, ``pass_args`` beside it changes single arguments of its
    passes, and calibration keys are merged.

    Args:
        quant_cfg (dict): Keys ``recipe``, ``bits``, ``rules``, ``passes``,
            ``pass_args``, ``calibration``, all optional as long as rules
            result.

    Returns:
        QuantConfig: The spelled-out form.

    Raises:
        QuantConfigError: Names the key, the value and what is allowed.
    """
    if not isinstance(quant_cfg, dict):
        raise QuantConfigError(
            f'quant_cfg: expected a dict, got {quant_cfg!r}'
        )
    cfg = plain(quant_cfg)
    for key in cfg:
        if key not in _KEYS:
            raise QuantConfigError('quant_cfg: ' + unknown('key', key, _KEYS))
    for key, kind in (
        ('recipe', str),
        ('rules', list),
        ('passes', list),
        ('pass_args', dict),
        ('calibration', dict),
    ):
        if cfg.get(key) is not None and not isinstance(cfg[key], kind):
            raise QuantConfigError(
                f'quant_cfg.{key}: expected a '
                f'{kind.__name__}, got {cfg[key]!r}'
            )
    recipe = cfg.get('recipe')
    base = load_recipe(recipe) if recipe is not None else {}
    user_rules = cfg.get('rules', [])
    rules = list(base.get('rules', [])) + list(user_rules)
    passes = cfg.get('passes', base.get('passes', []))
    if not rules or not passes:
        raise QuantConfigError(
            "quant_cfg: give a 'recipe' "
            f'({", ".join(recipe_names())} or a file), or both '
            "'rules' and 'passes'"
        )
    bits = cfg.get('bits', base.get('bits'))
    calibration = {**base.get('calibration', {}), **cfg.get('calibration', {})}
    allowed = list(Calibration.__dataclass_fields__)
    for key in calibration:
        if key not in allowed:
            raise QuantConfigError(
                'calibration: ' + unknown('key', key, allowed)
            )
    for i, rule in enumerate(rules):
        check_rule(rule, f'rules[{i}]', rules[:i])
    config = QuantConfig(
        recipe=_recipe_label(recipe),
        bits=parse_bits(bits) if bits is not None else None,
        rules=rules,
        passes=_with_args(passes, cfg.get('pass_args', {})),
        calibration=Calibration(**calibration),
        user_rules=len(user_rules),
    )
    config.build_passes()
    return config


def _with_args(passes: list[dict], changes: dict) -> list[dict]:
    """Changes arguments of the passes of some types.

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


def _recipe_label(recipe: str | None) -> str:
    return Path(recipe).stem if recipe is not None else 'custom'
