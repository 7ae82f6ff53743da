# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules applied to a surveyed graph: what each tensor becomes."""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..errors import QuantConfigError, unknown
from ..quant_cfg import (
    DEFAULT_QUANTIZER,
    QuantConfig,
    check_width,
    patterns_of,
)
from ..quantizers import PerInstance
from ..registry import QUANT_LAYERS, QUANTIZERS, find_class
from ..structures import (
    LayerGraph,
    LayerNode,
    LayerPlan,
    Port,
    QuantPlan,
    QuantSpec,
)
from .rules import Outcome, apply_rules, hits, holds
from .shared import settle_shared

#: what the methods of transformers are about
TOLD = {'@linear', '@softmax', '@gelu', '@norm'}


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
                    f'{config.place(i)}: the glob matches no quantizable '
                    'layer: ' + _near(pattern, names)
                )


def _near(pattern: str, names: list[str]) -> str:
    """What may have been meant by a glob that matches nothing."""
    inside = f'{pattern.rstrip(".")}.*'
    count = sum(fnmatchcase(n, inside) for n in names)
    if count:
        return (
            f'{pattern!r} is the name of a part; {inside!r} matches the '
            f'{count} layers in it'
        )
    return unknown('layer', pattern, names)


def unmatched_rules(config: QuantConfig, graph: LayerGraph) -> list[str]:
    """A sentence for each rule that no layer answers to.

    That is no mistake: one set of rules may be meant for several detectors,
    of which one has no mask head. Of a recipe only those rules are told that
    are about attention, GELU or norms, by which it differs from others.

    Args:
        config (QuantConfig): The checked configuration.
        graph (LayerGraph): The surveyed model.

    Returns:
        list[str]: Notes, each with the rule's place.
    """
    own = {i for i, _ in config.own_rules()}
    return [
        f'{config.place(i)}: {" ".join(patterns_of(rule))} matches no layer '
        'that this detector runs'
        for i, rule in enumerate(config.rules)
        if (i in own or set(patterns_of(rule)) <= TOLD)
        and not any(hits(rule, node)[1] for node in graph.layers.values())
    ]


def make_plan(
    config: QuantConfig, graph: LayerGraph, uncovered: dict[str, str]
) -> QuantPlan:
    """Decides the quantizer of every weight and activation.

    Rules are applied in order and merged key by key, so that a later rule
    changes only what it says; a changed ``type`` keeps the bits and those
    of the earlier arguments that it has too. ``None`` keeps a tensor float
    until a later rule gives something, which goes on from what came before.
    A skip holds until a later rule with ``skip=False`` lifts it; what rules
    say meanwhile counts from then on.

    Args:
        config (QuantConfig): Checked rules and default bits.
        graph (LayerGraph): The surveyed model.
        uncovered (dict[str, str]): Modules that no twin covers.

    Returns:
        QuantPlan: In execution order.

    Raises:
        QuantConfigError: If a quantized tensor ends up without bits or with
            some that its quantizer does not have, if a rule of the user's
            matches layers and nothing of what it says holds, or if softmax
            has a width of its own that no input gets.
    """
    found = {
        name: apply_rules(config.rules, node)
        for name, node in graph.layers.items()
    }
    _check_rules_act(config, graph, found)
    _check_softmax(config, graph, found)
    layers = {
        name: _plan_layer(config, node, found[name])
        for name, node in graph.layers.items()
    }
    notes = settle_shared(graph, layers)
    return QuantPlan(layers, _groups(graph, layers), dict(uncovered), notes)


def _check_rules_act(
    config: QuantConfig,
    graph: LayerGraph,
    found: dict[str, dict[str, Outcome]],
) -> None:
    """Refuses rules of the user's that match layers and change nothing."""
    for i, rule in config.own_rules():
        nodes = [n for n in graph.layers.values() if hits(rule, n)[1]]
        if nodes and not any(holds(rule, n, found[n.name]) for n in nodes):
            raise QuantConfigError(
                f'{config.place(i)}: {" ".join(patterns_of(rule))} matches '
                f'{len(nodes)} layers and changes nothing: '
                + _why_idle(rule, nodes, found)
            )


def _why_idle(
    rule: dict, nodes: list[LayerNode], found: dict[str, dict[str, Outcome]]
) -> str:
    skips = {found[n.name][t].skip for n in nodes for t in hits(rule, n)[1]}
    if 'skip' in rule or '' in skips:
        return (
            'the layers have no such tensor, or later rules say otherwise; '
            'remove it or put it after them'
        )
    return (
        f'they are skipped by {", ".join(sorted(skips))}; to quantize them '
        'add skip=False to this rule, else remove it'
    )


def _check_softmax(
    config: QuantConfig,
    graph: LayerGraph,
    found: dict[str, dict[str, Outcome]],
) -> None:
    """Refuses a width of softmax that no input of a layer gets."""
    bits = config.bits
    if bits is None or bits.softmax == bits.act:
        return
    ports = [
        (node.name, port)
        for node in graph.layers.values()
        for port in node.ports
        if _from_softmax(node, port)
    ]
    counted = [found[name][port].counts for name, port in ports]
    if any(c is not None and c.get('bits') is None for c in counted):
        return
    why = 'no softmax is the input of a layer of this detector'
    if ports:
        why = (
            f'rules set the bits of all {len(ports)} inputs that come from a '
            f'softmax, or leave them float (e.g. {".".join(ports[0])})'
        )
    raise QuantConfigError(
        f'bits {str(bits)!r}: {why}; leave s{bits.softmax} out: '
        f'bits={str(bits._replace(softmax=bits.act))!r}'
    )


def _from_softmax(node: LayerNode, tensor: str) -> bool:
    return 'softmax' in node.port_roles.get(tensor, ())


def _plan_layer(
    config: QuantConfig, node: LayerNode, found: dict[str, Outcome]
) -> LayerPlan:
    specs = {
        tensor: _spec(config, node, one.counts, tensor)
        for tensor, one in found.items()
    }
    why = ''
    if not any(specs.values()):
        skips = [
            f'rule {one.skip}: skip' for one in found.values() if one.skip
        ]
        matched = any(hits(rule, node)[1] for rule in config.rules)
        why = 'rules leave it float' if matched else 'no rule matches it'
        why = skips[0] if skips else why
    return LayerPlan(node.name, specs.pop('weight', None), specs, why)


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
        bits = (
            config.bits.weight
            if tensor == 'weight'
            else config.bits.softmax
            if _from_softmax(node, tensor)
            else config.bits.act
        )
    if tensor != 'weight' and args.get('granularity') == 'group':
        args.setdefault('group_size', None)
        if args['group_size'] is None:
            args['group_size'] = 'conv'
    kind = spec.get('type', DEFAULT_QUANTIZER)
    check_width(kind, bits, f'{node.name}.{tensor}')
    return QuantSpec(kind, bits, args)


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
            if spec.args.get('granularity') == 'row':
                key.append(QUANT_LAYERS.get(node.cls).row_axes.get(port))
            elif _has_channels(spec):
                key += [node.groups, QUANT_LAYERS.get(node.cls).act_axis]
            if spec.args.get('per_level'):
                at = node.ports.index(port)
                key.append([call.inputs[at] for call in node.calls])
            split.setdefault(json.dumps(key, sort_keys=True), []).append(
                (name, port)
            )
        groups += split.values()
    return groups


def _has_channels(spec: QuantSpec) -> bool:
    """Whether which axis is that of the channels makes a difference."""
    kind = spec.args.get('granularity')
    adapts = issubclass(find_class(QUANTIZERS, spec.type), PerInstance)
    return kind in ('group', 'channel') or (adapts and kind is None)
