# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules applied to a surveyed graph: what each tensor becomes."""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..errors import QuantConfigError, unknown
from ..quant_cfg import PORT_ROLES, QuantConfig, patterns_of
from ..structures import (
    LayerGraph,
    LayerNode,
    LayerPlan,
    Port,
    QuantPlan,
    QuantSpec,
)


def check_globs(config: QuantConfig, names: Iterable[str]) -> None:
    """Refuses globs that match no layer.

    Args:
        config (QuantConfig): The checked configuration.
        names (Iterable[str]): Names of all quantizable layers.

    Raises:
        QuantConfigError: Names the glob and the nearest layer name.
    """
    names = list(names)
    for i, rule in enumerate(config.rules):
        for pattern in patterns_of(rule):
            if not pattern.startswith('@') and not any(
                fnmatchcase(n, pattern) for n in names
            ):
                raise QuantConfigError(
                    f'rules[{i}]: the glob matches no quantizable layer: '
                    + unknown('layer', pattern, names)
                )


def make_plan(
    config: QuantConfig, graph: LayerGraph, uncovered: dict[str, str]
) -> QuantPlan:
    """Decides the quantizer of every weight and activation.

    Rules are applied in order and merged key by key, so that a later rule
    changes only what it says; a changed ``type`` drops the arguments that
    belonged to the earlier type.

    Args:
        config (QuantConfig): Checked rules and default bits.
        graph (LayerGraph): The surveyed model.
        uncovered (dict[str, str]): Modules that no twin covers.

    Returns:
        QuantPlan: In execution order.

    Raises:
        QuantConfigError: If a quantized tensor ends up without bits.
    """
    layers = {
        name: _plan_layer(config, node) for name, node in graph.layers.items()
    }
    return QuantPlan(layers, _groups(graph, layers), dict(uncovered))


def _plan_layer(config: QuantConfig, node: LayerNode) -> LayerPlan:
    weight: dict | None = None
    acts: dict[str, dict | None] = dict.fromkeys(node.ports)
    why = 'no rule matches it'
    for rule in config.rules:
        hit = [p for p in patterns_of(rule) if _matches(p, node)]
        ports = (
            list(node.ports)
            if hit
            else [
                port
                for port in node.ports
                if _port_matches(patterns_of(rule), node, port)
            ]
        )
        if rule.get('skip'):
            if hit:
                weight, why = None, f'rule {" ".join(hit)}: skip'
            acts.update(dict.fromkeys(ports))
            continue
        if hit and 'weight' in rule and 'weight' in _tensors(node):
            weight = _merge(weight, rule['weight'])
        if 'act' in rule:
            for port in ports:
                acts[port] = _merge(acts[port], rule['act'])
        if hit and (weight is not None or any(acts.values())):
            why = ''
    specs = {
        port: _spec(config, node, spec, port) for port, spec in acts.items()
    }
    weight_spec = _spec(config, node, weight, 'weight')
    quantized = weight_spec is not None or any(specs.values())
    return LayerPlan(
        node.name,
        weight_spec,
        specs,
        '' if quantized else why or 'rules leave it float',
    )


def _tensors(node: LayerNode) -> tuple[str, ...]:
    return (*node.ports, 'weight') if node.params else node.ports


def _matches(pattern: str, node: LayerNode) -> bool:
    if not pattern.startswith('@'):
        return fnmatchcase(node.name, pattern)
    role = pattern[1:]
    if role == 'grouped':
        return node.groups > 1
    if role == 'matmul':
        return len(node.ports) > 1
    return role not in PORT_ROLES and role in node.roles


def _port_matches(patterns: list[str], node: LayerNode, port: str) -> bool:
    roles = node.port_roles.get(port, frozenset())
    return any(
        p[1:] in PORT_ROLES and p[1:] in roles
        for p in patterns
        if p.startswith('@')
    )


def _merge(old: dict | None, new: dict | None) -> dict | None:
    if new is None:
        return None
    if old and 'type' in new and new['type'] != old.get('type'):
        old = {k: v for k, v in old.items() if k == 'bits'}
    return {**(old or {}), **new}


def _spec(
    config: QuantConfig, node: LayerNode, spec: dict | None, tensor: str
) -> QuantSpec | None:
    if spec is None:
        return None
    args = {k: v for k, v in spec.items() if k not in ('type', 'bits')}
    bits = spec.get('bits')
    if bits is None:
        if config.bits is None:
            raise QuantConfigError(
                f'{node.name}: no rule sets the bits of its {tensor} and '
                "quant_cfg has no 'bits'; add e.g. bits='w8a8'"
            )
        softmax = 'softmax' in node.port_roles.get(tensor, ())
        bits = (
            config.bits.weight
            if tensor == 'weight'
            else config.bits.softmax
            if softmax
            else config.bits.act
        )
    if tensor != 'weight' and args.get('granularity') == 'group':
        args.setdefault('group_size', None)
        if args['group_size'] is None:
            args['group_size'] = 'conv'
    return QuantSpec(spec.get('type', 'UniformQuantizer'), bits, args)


def _groups(
    graph: LayerGraph, layers: dict[str, LayerPlan]
) -> list[list[Port]]:
    """Ports that share a quantizer: same tensors, same spec.

    With a range for each pyramid level, only layers that read the same
    tensor in every call can share; otherwise levels would be mixed up.
    """
    groups = []
    for ports in graph.shared_ports:
        split: dict[str, list[Port]] = {}
        for name, port in ports:
            spec = layers[name].acts[port]
            if spec is None:
                continue
            node = graph.layers[name]
            key = [spec.type, spec.bits, spec.args]
            if spec.args.get('granularity') in ('group', 'channel'):
                key.append(node.groups)
            if spec.args.get('per_level'):
                at = node.ports.index(port)
                key.append([call.inputs[at] for call in node.calls])
            split.setdefault(json.dumps(key, sort_keys=True), []).append(
                (name, port)
            )
        groups += split.values()
    return groups
