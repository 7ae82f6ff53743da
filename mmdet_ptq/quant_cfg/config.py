# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of ``quant_cfg``: everything is checked before a forward."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import QuantConfigError, unknown
from ..registry import PASSES, build_from
from .bits import Bits, parse_bits
from .calibration import Calibration
from .defaults import with_defaults
from .plain import plain
from .recipes import (
    checked_keys,
    joined,
    load_recipe,
    recipe_names,
    with_passes,
)
from .rules import TENSORS, check_default_widths, check_rule, patterns_of
from .scopes import scope_rules


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
        scope (str): Whose rules stand before the user's, or ``''``.
    """

    recipe: str
    bits: Bits | None
    rules: list[dict]
    passes: list[dict]
    calibration: Calibration = field(default_factory=Calibration)
    user_rules: int = 0
    scope: str = ''

    def own_rules(self) -> list[tuple[int, dict]]:
        """The user's rules, each with its index among all."""
        first = len(self.rules) - self.user_rules
        return list(enumerate(self.rules))[first:]

    def names_norms(self) -> bool:
        """Whether a rule says how norms are quantized."""
        return any(
            '@norm' in patterns_of(rule)
            and any(rule.get(tensor) is not None for tensor in TENSORS)
            for rule in self.rules
        )

    def place(self, i: int) -> str:
        """Where rule ``i`` stands, as its author counts, for messages."""
        first = len(self.rules) - self.user_rules
        if i >= first:
            return f'rules[{i - first}]'
        first -= len(scope_rules(self.scope))
        if i >= first:
            return f'scope {self.scope}: rules[{i - first}]'
        return f'recipe {self.recipe}: rules[{i}]'

    @property
    def title(self) -> str:
        """Recipe, bits and scope in a line."""
        bits = str(self.bits) if self.bits else 'by rule'
        return ' '.join(filter(None, (self.recipe, bits, self.scope)))

    @cached_property
    def built_passes(self) -> list[Any]:
        """The pass objects, in order; they hold settings and no state."""
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

    def spelled_out(self) -> dict:
        """:meth:`to_dict` with the defaults of every pass and its parts."""
        return dict(self.to_dict(), passes=with_defaults(self.passes))


def parse_quant_cfg(quant_cfg: dict) -> QuantConfig:
    """Expands and checks a ``quant_cfg`` block.

    Rules and passes come from ``recipe`` if one is named; rules given
    beside it are added after the recipe's and those of ``scope``, passes
    given beside it replace the recipe's, ``mix_heads``, ``equalize`` and
    ``scale_inputs`` beside it add ``MixHeads``, ``EqualizeChannels`` and
    ``ScaleInputs`` to its passes or take them out, ``pass_args`` changes
    single arguments of them, and calibration keys are merged.

    Args:
        quant_cfg (dict): Keys ``recipe``, ``bits``, ``scope``, ``rules``,
            ``passes``, ``mix_heads``, ``equalize``, ``scale_inputs``,
            ``pass_args``, ``calibration``, all optional as long as rules
            result.

    Returns:
        QuantConfig: The spelled-out form.

    Raises:
        QuantConfigError: Names the key, the value and what is allowed.
    """
    cfg = checked_keys(quant_cfg)
    recipe = cfg.pop('recipe', None)
    own = cfg.get('rules', [])
    base = load_recipe(recipe) if recipe is not None else {}
    cfg = with_passes(joined(base, cfg))
    scope = cfg.get('scope', '')
    bits = cfg.get('bits')
    config = QuantConfig(
        recipe=Path(recipe).stem if recipe is not None else 'custom',
        bits=parse_bits(bits) if bits is not None else None,
        rules=[*base.get('rules', []), *scope_rules(scope), *own],
        passes=cfg.get('passes', []),
        calibration=_calibration(cfg.get('calibration', {})),
        user_rules=len(own),
        scope=scope,
    )
    if not config.rules or not config.passes:
        raise QuantConfigError(
            "quant_cfg: give a 'recipe' "
            f'({", ".join(recipe_names())} or a file), or both '
            "'rules' and 'passes'"
        )
    if scope and not base:
        raise QuantConfigError(
            f'quant_cfg.scope: {scope!r} changes what a recipe says, and '
            'there is no recipe; name one, or leave the scope out'
        )
    for i, rule in enumerate(config.rules):
        check_rule(rule, config.place(i), config.rules[:i])
    if config.bits is not None:
        check_default_widths(config.rules, config.bits, config.place)
    _ = config.built_passes
    return config


def _calibration(cfg: dict) -> Calibration:
    allowed = list(Calibration.__dataclass_fields__)
    for key in cfg:
        if key not in allowed:
            raise QuantConfigError(
                'calibration: ' + unknown('key', key, allowed)
            )
    return Calibration(**cfg)
