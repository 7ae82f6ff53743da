# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of rules."""

from collections.abc import Sequence

from ..errors import QuantConfigError, unknown
from ..registry import QUANTIZERS, build_from, find_class
from .bits import MAX_BITS, check_bits

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
RULE_KEYS = ('match', 'weight', 'act', 'skip')


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
        if key not in RULE_KEYS:
            raise QuantConfigError(
                f'{where}: ' + unknown('rule key', key, RULE_KEYS)
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
