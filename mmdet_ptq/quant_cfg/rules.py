# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grammar of rules."""

import re
from collections.abc import Callable, Sequence

from ..errors import QuantConfigError, unknown
from ..registry import (
    QUANTIZERS,
    arguments_of,
    build_from,
    check_arguments,
    find_class,
)
from .bits import Bits, check_bits

#: each with what it stands for
ROLES = {
    'stem': 'layers that read the image',
    'backbone': 'layers of the backbone',
    'neck': 'layers of the neck',
    'head': 'all that is neither backbone nor neck',
    'rpn': 'layers of the RPN; they are `@head` too',
    'mask': 'layers of a mask head; they are `@head` too',
    'prediction': 'last layers, which give classes, boxes or masks',
    'attention': 'projections and products of an attention',
    'matmul': 'products of two activations',
    'position': 'projections of positional encodings, after `SplitPositions`',
    'norm': 'layer norms, which are float unless a rule says `@norm`',
    'linear': 'linear layers',
    'grouped': 'convolutions with groups, depthwise ones included',
    'transposed': 'transposed convolutions',
    'offset': 'layers that say where a deformable layer samples',
    'softmax': 'inputs that come from a softmax',
    'gelu': 'inputs that come from a GELU',
    'query': 'first operands of the products that a softmax reads',
    'key': 'second operands of these products',
}
#: of single inputs of a layer
PORT_ROLES = ('softmax', 'gelu', 'query', 'key')
#: where no rule gives a type
DEFAULT_QUANTIZER = 'UniformQuantizer'
#: what rules are about
TENSORS = ('weight', 'act')
RULE_KEYS = ('match', *TENSORS, 'skip')
#: arguments of quantizers that the tensor decides, and no rule
GIVEN = ('axis', 'role')


def check_rule(rule: dict, where: str, earlier: Sequence[dict] = ()) -> None:
    """Checks one rule as far as it can be without a model.

    Args:
        rule (dict): One of ``quant_cfg.rules``.
        where (str): Its place, for the message.
        earlier (Sequence[dict]): Rules before it, already checked; they may
            set the type that this one changes arguments of.

    Raises:
        QuantConfigError: On an unknown key, role, quantizer, quantizer
            argument or bit-width, or if it says nothing.
    """
    if not isinstance(rule, dict):
        raise QuantConfigError(f'{where}: expected a dict, got {rule!r}')
    for key in rule:
        if key not in RULE_KEYS:
            raise QuantConfigError(
                f'{where}: ' + unknown('rule key', key, RULE_KEYS)
            )
    _check_match(rule, where)
    if len(rule) == 1:
        raise QuantConfigError(
            f'{where}: {rule!r} says nothing; give weight, act or skip'
        )
    _check_skip(rule, where)
    for key in TENSORS:
        spec = rule.get(key)
        if spec is None:
            continue
        if not isinstance(spec, dict):
            raise QuantConfigError(
                f'{where}.{key}: expected a dict or None, got {spec!r}'
            )
        _check_meant(spec, key, f'{where}.{key}')
        if spec.get('bits') is not None:
            check_bits(spec['bits'], f'{where}.{key}.bits')
        types = [DEFAULT_QUANTIZER]
        types += [s['type'] for s in _specs(earlier, key) if 'type' in s]
        if 'type' in spec:
            types = [spec['type']]
        _check_spec(
            {**spec, 'role': key}, list(dict.fromkeys(types)), f'{where}.{key}'
        )


def check_width(kind: str, bits: int, where: str) -> None:
    """Refuses a width that a quantizer does not have.

    Args:
        kind (str): Registered name of the quantizer.
        bits (int): The width.
        where (str): Rule or layer and tensor, for the message.

    Raises:
        QuantConfigError: Names the widths there are and what to do.
    """
    allowed = [str(b) for b in find_class(QUANTIZERS, kind).allowed_bits]
    if str(bits) not in allowed:
        widths = ' or '.join(', '.join(allowed).rsplit(', ', 1))
        raise QuantConfigError(
            f'{where}: bits of {kind} must be {widths}, got {bits}; give '
            'it one of these widths by a rule, or another quantizer'
        )


def check_default_widths(
    rules: Sequence[dict], bits: Bits, where: Callable[[int], str]
) -> None:
    """Refuses widths of ``bits=`` that the quantizer in use does not have.

    Only where that is certain without a model: no rule sets bits of this
    kind of tensor, and no later rule sets its type. The plan finds the rest.

    Args:
        rules (Sequence[dict]): Checked rules.
        bits (Bits): Widths where no rule sets any.
        where (Callable): Place of a rule, for the message.

    Raises:
        QuantConfigError: Names the rule that sets the type.
    """
    for key, width in zip(TENSORS, (bits.weight, bits.act), strict=True):
        if any('bits' in spec for spec in _specs(rules, key)):
            continue
        typed = [
            i for i, r in enumerate(rules) if 'type' in (r.get(key) or {})
        ]
        for i in typed[-1:]:
            if patterns_of(rules[i]) != ['@softmax']:
                check_width(rules[i][key]['type'], width, f'{where(i)}.{key}')


def _check_skip(rule: dict, where: str) -> None:
    if not isinstance(rule.get('skip', False), bool):
        raise QuantConfigError(
            f'{where}: skip={rule["skip"]!r} must be True or False'
        )
    said = [key for key in TENSORS if rule.get(key) is not None]
    if rule.get('skip') and said:
        raise QuantConfigError(
            f'{where}: skip=True leaves the layer float and {said[0]}= '
            'quantizes it; give one of them, or skip=False with '
            f'{said[0]}='
        )


def _check_match(rule: dict, where: str) -> None:
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


def _check_meant(spec: dict, key: str, where: str) -> None:
    """Refuses arguments of quantizers that no rule can mean."""
    for name in GIVEN:
        if name in spec:
            raise QuantConfigError(
                f'{where}: {name!r} follows from the tensor; remove it'
            )
    if key == 'weight' and 'per_level' in spec:
        raise QuantConfigError(
            f"{where}: 'per_level' is for act: a layer has one weight for "
            'all pyramid levels; remove it'
        )


def _specs(rules: Sequence[dict], key: str) -> list[dict]:
    """What rules say of weights, or of activations."""
    return [r[key] for r in rules if isinstance(r.get(key), dict)]


def _check_spec(spec: dict, types: list[str], where: str) -> None:
    """Builds one of the quantizers that a spec may be for, as a trial."""
    args = dict(spec)
    if args.get('bits') is None:  # those of quant_cfg
        args.pop('bits', None)
    own = args.get('granularity') == 'group' and args.get('group_size') is None
    if not own and args.get('group_size') is not None:
        args.setdefault('granularity', 'group')
        if isinstance(args['group_size'], str):
            _check_share(args['group_size'], args.get('role'), where)
            args['group_size'] = 1  # it depends on the layer
    wrong, others = [], []
    for kind in types:
        cfg = {**args, 'type': kind}
        try:
            cls = check_arguments(QUANTIZERS, cfg, where, GIVEN)
        except QuantConfigError as error:
            others.append(error)  # it does not have these arguments
            continue
        try:
            cfg.setdefault('bits', max(cls.allowed_bits))
            check_width(kind, cfg['bits'], where)
            if own and 'group_size' in arguments_of(cls):
                cfg['group_size'] = 1  # stands for a convolution's own groups
            build_from(QUANTIZERS, cfg, where)
            return
        except QuantConfigError as error:
            wrong.append(error)
    raise [*wrong, *others][0]


def _check_share(size: str, role: str | None, where: str) -> None:
    """Refuses what is no share of the input channels."""
    if role == 'weight' or not re.fullmatch(r'1/[1-9]\d*', size):
        raise QuantConfigError(
            f'{where}: group_size={size!r} must be a number or, for act, a '
            "share of the input channels such as '1/8'"
        )


def patterns_of(rule: dict) -> list[str]:
    """The patterns of a rule's ``match``, always as a list."""
    match = rule.get('match', [])
    return list(match) if isinstance(match, list | tuple) else [match]
