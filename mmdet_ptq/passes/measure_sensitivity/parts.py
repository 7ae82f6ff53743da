# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is quantized together: layers, and parts of a detector by role."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...graph.vocabulary import MIXING, NORMS, canonical
from ...plan.rules import hits
from ...quant_cfg import PORT_ROLES, ROLES
from ...structures import LayerGraph, Op, QuantPlan


@dataclass(frozen=True)
class Part:
    """Layers that are quantized, or left float, together.

    Attributes:
        name (str): Of a layer, of several as ``'parent.{q,k,v}'``, or a role
            such as ``'@neck'``.
        layers (tuple[str, ...]): In execution order.
        weights (tuple[str, ...]): Those whose weight is quantized.
        acts (tuple[str, ...]): Those with an input that is quantized.
    """

    name: str
    layers: tuple[str, ...]
    weights: tuple[str, ...]
    acts: tuple[str, ...]

    @property
    def is_role(self) -> bool:
        """Whether it is all layers of a role."""
        return self.name.startswith('@')


def find_parts(graph: LayerGraph, plan: QuantPlan) -> list[Part]:
    """Quantized layers, then roles that say more than single layers do.

    Layers of an attention that feed one product, or that lie side by side
    and read one tensor, are one part: queries, keys and values. So are
    layers that have one weight. A role that has the layers of a single
    part, or of an earlier role, or all layers, is left out.

    Args:
        graph (LayerGraph): The survey.
        plan (QuantPlan): What is quantized.

    Returns:
        list[Part]: In execution order, roles at the end in the order of
        :data:`mmdet_ptq.quant_cfg.ROLES`.
    """
    quantized = [
        name
        for name, one in plan.layers.items()
        if one.weight is not None or any(one.acts.values())
    ]
    of: dict[str, set[str]] = {name: {name} for name in quantized}
    tied = [{n, *graph.layers[n].tied} for n in quantized]
    for together in [*attention_groups(graph), *tied]:
        joined = set().union(*(of.get(name, set()) for name in together))
        of.update(dict.fromkeys(joined, joined))
    groups = {tuple(n for n in quantized if n in of[m]) for m in quantized}
    found = sorted(groups, key=lambda group: quantized.index(group[0]))
    parts = [_part(plan, _name_of(group), group) for group in found]
    seen = {frozenset(group) for group in [*found, tuple(quantized)]}
    for role in ROLES:
        group = tuple(_with_role(graph, quantized, role))
        if group and frozenset(group) not in seen:
            seen.add(frozenset(group))
            parts.append(_part(plan, f'@{role}', group))
    return parts


def _with_role(
    graph: LayerGraph, names: Iterable[str], role: str
) -> Iterator[str]:
    if role in PORT_ROLES:  # of inputs, not of layers
        return
    rule = dict(match=f'@{role}')
    for name in names:
        if hits(rule, graph.layers[name])[0]:
            yield name


def _part(plan: QuantPlan, name: str, layers: tuple[str, ...]) -> Part:
    of = plan.layers
    return Part(
        name,
        layers,
        tuple(n for n in layers if of[n].weight is not None),
        tuple(n for n in layers if any(of[n].acts.values())),
    )


def _name_of(layers: tuple[str, ...]) -> str:
    """The name of one layer, or what several have in common."""
    if len(layers) == 1:
        return layers[0]
    split = [name.split('.') for name in layers]
    same = 0
    while len({tuple(words[: same + 1]) for words in split}) == 1:
        same += 1
    parent = ''.join(f'{word}.' for word in split[0][:same])
    rest = ','.join('.'.join(words[same:]) for words in split)
    return f'{parent}{{{rest}}}'


def attention_groups(graph: LayerGraph) -> list[set[str]]:
    """Layers of attentions that belong together; sets may overlap.

    Args:
        graph (LayerGraph): The survey.

    Returns:
        list[set[str]]: What feeds one product of an attention, through a
        softmax and the product before it too; and layers of an attention
        in the same module that read the same tensor.
    """
    found = []
    for op in graph.ops:
        node = graph.layers.get(op.module)
        product = node is not None and _is_product(graph, op)
        if not product and canonical(op.name) != 'scaleddotproductattention':
            continue
        fed = set().union(*(_feeders(graph, v) for v in op.inputs[:3]))
        found.append({n for n in fed if _attends(graph, n)})
    for ports in graph.shared_ports:
        siblings: dict[str, set[str]] = {}
        for name, _ in ports:
            if _attends(graph, name) and len(graph.layers[name].ports) == 1:
                siblings.setdefault(name.rpartition('.')[0], set()).add(name)
        found += siblings.values()
    return [group for group in found if len(group) > 1]


def _attends(graph: LayerGraph, name: str) -> bool:
    return 'attention' in graph.layers[name].roles


def _is_product(graph: LayerGraph, op: Op) -> bool:
    node = graph.layers.get(op.module)
    return (
        node is not None and len(node.ports) > 1 and 'attention' in node.roles
    )


def _feeders(graph: LayerGraph, value: int) -> set[str]:
    """Layers that a value comes from, through products of an attention."""
    found: set[str] = set()
    todo, seen = [value], set()
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        made = graph.values[number].producer
        if made < 0:
            continue
        op = graph.ops[made]
        if op.module in graph.layers and not _is_product(graph, op):
            found.add(op.module)
        elif _passes(graph, op):
            todo += [i for i in op.inputs if graph.values[i].floating]
    return found


def _passes(graph: LayerGraph, op: Op) -> bool:
    """Whether numbers go on as they are, but for products of attention."""
    name = canonical(op.name)
    return _is_product(graph, op) or not (name in MIXING or name in NORMS)
