# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of ``quant_cfg``: everything is checked before a forward."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import QuantConfigError, unknown
from ..registry import PASSES, QUANTIZERS, build_from, find_class
from .bits import MAX_BITS, Bits, check_bits, parse_bits, parse_bytes

RECIPE_DIR = Path(__file__).parent.parent / 'recipes'
ROLES = (
    'stem',
    'prediction',
    'backbone',
    'neck',
    'rpn',
    'head',
    'mask',
    'attention',
    'offset',
    'grouped',
    'matmul',
    'softmax',
    'gelu',
)
PORT_ROLES = ('softmax', 'gelu')
_KEYS = ('recipe', 'bits', 'rules', 'passes', 'pass_args', 'calibration')
_RULE_KEYS = ('match', 'weight', 'act', 'skip')


@dataclass
class Calibration:
    """Which images calibrate.

    Attributes:
        num_samples (int): How many images. Defaults to 32.
        source (str): ``'train'``, ``'test'`` or a folder of images.
        seed (int): Seed of the choice of images, and of passes that draw.
            Defaults to 0.
        cache (str | int): How much memory activations may take, e.g.
            ``'4GiB'``; the rest goes to the work dir. Defaults to 4 GiB.
        cache_dtype (str): ``'float32'`` or ``'float16'``, which halves it.
            Defaults to ``'float32'``.
    """

    num_samples: int = 32
    source: str = 'train'
    seed: int = 0
    cache: str | int = '4GiB'
    cache_dtype: str = 'float32'

    @property
    def cache_bytes(self) -> int:
        """``cache`` as a number."""
        return parse_bytes(self.cache, 'calibration.cache')

    def __post_init__(self) -> None:
        for name, low in (('num_samples', 1), ('seed', 0)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise QuantConfigError(
                    f'calibration.{name}: {value!r} is not a whole number '
                    f'of at least {low}'
                )
        if not self.cache_bytes:
            raise QuantConfigError('calibration.cache: must be above 0')
        if self.cache_dtype not in ('float32', 'float16'):
            raise QuantConfigError(
                'calibration.cache_dtype: '
                + unknown('dtype', self.cache_dtype, ['float32', 'float16'])
            )
        if not isinstance(self.source, str):
            raise QuantConfigError(
                f"calibration.source: {self.source!r} is not 'train', 'test' "
                'or a folder of images'
            )


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
        return _plain(out)


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
    found = _plain(Config.fromfile(str(path)).to_dict())
    allowed = [k for k in _KEYS if k != 'recipe']
    for key in found:
        if key not in allowed:
            raise QuantConfigError(
                f'recipe {path.name}: ' + unknown('key', key, allowed)
            )
    return found


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
    cfg = _plain(quant_cfg)
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


def check_rule(rule: dict, where: str, earlier: Sequence[dict] = ()) -> None:
    """Checks one rule as far as it can be without a model.

    Args:
        rule (dict): One of ``quant_cfg.rules``.
        where (str): Its place, for the message.
        earlier (Sequence[dict]): Rules before it, already checked; they may
            set the type that this one changes arguments of.

    Raises:
        QuantConfigError: On an unknown key, role, quantizer, quantizer
            argument or bit-width.
    """
    if not isinstance(rule, dict):
        raise QuantConfigError(f'{where}: expected a dict, got {rule!r}')
    for key in rule:
        if key not in _RULE_KEYS:
            raise QuantConfigError(
                f'{where}: ' + unknown('rule key', key, _RULE_KEYS)
            )
    patterns = patterns_of(rule)
    if not patterns or not all(isinstance(p, str) and p for p in patterns):
        raise QuantConfigError(
            f"{where}: 'match' must be a glob such as 'backbone.*', a role "
            "such as '@head', or a list of these"
        )
    for pattern in patterns:
        if pattern.startswith('@') and pattern[1:] not in ROLES:
            raise QuantConfigError(
                f'{where}: '
                + unknown('role', pattern, [f'@{r}' for r in ROLES])
            )
    if not isinstance(rule.get('skip', False), bool):
        raise QuantConfigError(
            f'{where}: skip={rule["skip"]!r} must be True or False'
        )
    for key in ('weight', 'act'):
        spec = rule.get(key)
        if spec is None:
            continue
        if not isinstance(spec, dict):
            raise QuantConfigError(
                f'{where}.{key}: expected a dict or None, got {spec!r}'
            )
        if 'bits' in spec:
            check_bits(spec['bits'], f'{where}.{key}.bits')
        types = (
            [spec['type']]
            if 'type' in spec
            else [
                'UniformQuantizer',
                *(
                    r[key]['type']
                    for r in earlier
                    if isinstance(r.get(key), dict) and 'type' in r[key]
                ),
            ]
        )
        _check_spec(spec, list(dict.fromkeys(types)), f'{where}.{key}')


def _check_spec(spec: dict, types: list[str], where: str) -> None:
    """Builds one of the quantizers that a spec may be for, as a trial."""
    args = dict(spec)
    if args.get('granularity') == 'group' and args.get('group_size') is None:
        args['group_size'] = 1  # stands for a convolution's own groups
    elif args.get('group_size') is not None:
        args.setdefault('granularity', 'group')
    errors = []
    for kind in types:
        try:
            widths = getattr(
                find_class(QUANTIZERS, kind), 'allowed_bits', (MAX_BITS,)
            )
            build_from(
                QUANTIZERS,
                {'bits': max(widths), **args, 'type': kind},
                where,
            )
            return
        except QuantConfigError as error:
            errors.append(error)
    raise errors[0]


def patterns_of(rule: dict) -> list[str]:
    """The patterns of a rule's ``match``, always as a list."""
    match = rule.get('match', [])
    return list(match) if isinstance(match, list | tuple) else [match]


def _recipe_label(recipe: str | None) -> str:
    return Path(recipe).stem if recipe is not None else 'custom'


def _plain(cfg: Any) -> Any:
    """A deep copy of dicts, lists and scalars without ConfigDict."""
    if isinstance(cfg, dict):
        return {k: _plain(v) for k, v in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [_plain(v) for v in cfg]
    return copy.deepcopy(cfg)
