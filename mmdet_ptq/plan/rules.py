# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules on one layer: what they say of each of its tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..quant_cfg import DEFAULT_QUANTIZER, PORT_ROLES, patterns_of
from ..quantizers import PerInstance
from ..registry import (
    QUANT_LAYERS,
    QUANTIZERS,
    arguments_of,
    find_class,
)
from ..structures import LayerNode


@dataclass
class Outcome:
    """What rules say of one tensor.

    Attributes:
        spec (dict, optional): Type, bits and arguments of its quantizer, as
            merged so far; None if no rule gave any.
        off (bool): Whether the last rule about it was None: float, until a
            later rule gives something. While it is off, ``spec`` does not
            count.
        skip (str): Patterns of the rule that skips it, else ''. While it is
            skipped, ``spec`` does not count.
    """

    spec: dict | None = None
    off: bool = False
    skip: str = ''

    @property
    def counts(self) -> dict | None:
        """``spec``, or None while the tensor is float."""
        return None if self.skip or self.off else self.spec


def apply_rules(rules: Sequence[dict], node: LayerNode) -> dict[str, Outcome]:
    """Applies rules in order, key by key.

    Args:
        rules (Sequence[dict]): Checked rules.
        node (LayerNode): The layer.

    Returns:
        dict[str, Outcome]: For ``'weight'``, if the layer has one, and each
        port.
    """
    found = {tensor: Outcome() for tensor in _tensors(node)}
    for rule in rules:
        patterns, tensors = hits(rule, node)
        for tensor in tensors:
            one = found[tensor]
            if 'skip' in rule:
                one.skip = ' '.join(patterns) if rule['skip'] else ''
            if _key(tensor) in rule:
                said = rule[_key(tensor)]
                one.off = said is None
                if said is not None:
                    one.spec = _merge(one.spec or {}, said)
    return found


def hits(rule: dict, node: LayerNode) -> tuple[list[str], list[str]]:
    """What a rule means in a layer.

    Args:
        rule (dict): A checked rule.
        node (LayerNode): The layer.

    Returns:
        tuple[list[str], list[str]]: The patterns that match, and the
        tensors they take in: all of the layer, or single ports where only
        roles of ports match.
    """
    patterns = patterns_of(rule)
    found = [p for p in patterns if _matches(p, node)]
    if found:
        return found, _tensors(node)
    roles = {p: node.port_roles.get(p, frozenset()) for p in node.ports}
    found = [p for p in patterns if _is_port_role(p)]
    found = [p for p in found if any(p[1:] in r for r in roles.values())]
    ports = [t for t, r in roles.items() if any(p[1:] in r for p in found)]
    return found, ports


def holds(rule: dict, node: LayerNode, found: dict[str, Outcome]) -> bool:
    """Whether anything that a rule says is so after all rules.

    Args:
        rule (dict): A checked rule.
        node (LayerNode): The layer.
        found (dict[str, Outcome]): What all rules say of it.

    Returns:
        bool: False if it says nothing of this layer, or if later rules or a
        skip leave nothing of what it says.
    """
    for tensor in hits(rule, node)[1]:
        one = found[tensor]
        if 'skip' in rule and rule['skip'] == bool(one.skip):
            return True
        if _key(tensor) not in rule or one.skip:
            continue
        said, spec = rule[_key(tensor)], one.counts
        if said is None or spec is None:
            if said is spec:
                return True
        elif not said or any(spec.get(k) == v for k, v in said.items()):
            return True
    return False


def _key(tensor: str) -> str:
    return 'weight' if tensor == 'weight' else 'act'


def _tensors(node: LayerNode) -> list[str]:
    own = node.params and QUANT_LAYERS.get(node.cls).weight_axis is not None
    return [*(['weight'] if own else []), *node.ports]


def _is_port_role(pattern: str) -> bool:
    return pattern.startswith('@') and pattern[1:] in PORT_ROLES


def _matches(pattern: str, node: LayerNode) -> bool:
    if not pattern.startswith('@'):
        return fnmatchcase(node.name, pattern)
    role = pattern[1:]
    if role == 'grouped':
        return node.groups > 1
    if role == 'matmul':
        return len(node.ports) > 1
    if role == 'transposed':
        return issubclass(node.cls, nn.ConvTranspose2d)
    if role == 'linear':
        return issubclass(node.cls, nn.Linear)
    return role not in PORT_ROLES and role in node.roles


def _merge(old: dict, new: dict) -> dict:
    """Later over earlier; another type keeps the arguments it has too."""
    kind = new.get('type')
    if kind is not None and kind != old.get('type', DEFAULT_QUANTIZER):
        cls = find_class(QUANTIZERS, kind)
        kept = {'bits', *arguments_of(cls)}
        if old.get('granularity') == 'row' and not issubclass(
            cls, PerInstance
        ):
            kept -= {'granularity'}
        old = {k: v for k, v in old.items() if k in kept}
    return {**old, **new}
