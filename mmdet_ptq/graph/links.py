# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which norm feeds which layer, and who shares a tensor."""

from torch import nn

from ..structures import NormLink, Port
from .vocabulary import canonical
from .walk import Walker

#: shape ops that put other tensors beside the one followed
_JOINS = frozenset(
    {
        'cat',
        'concat',
        'concatenate',
        'stack',
        'hstack',
        'vstack',
        'dstack',
        'setitem',
        'scatter',
        'indexput',
    }
)


def shared_ports(
    walker: Walker, ports: dict[str, tuple[str, ...]]
) -> list[list[Port]]:
    """Groups the ports that read the same tensors.

    Args:
        walker (Walker): The trace.
        ports (dict[str, tuple[str, ...]]): Ports of each layer.

    Returns:
        list[list[Port]]: A partition of all ports of the called layers, in
        execution order.
    """
    parent: dict[Port, Port] = {}

    def root(port: Port) -> Port:
        while parent[port] != port:
            port = parent[port]
        return port

    first: dict[int, Port] = {}
    for name, calls in walker.calls.items():
        for place, key in enumerate(ports[name]):
            port = (name, key)
            parent[port] = port
            for call in calls:
                if place < len(call.inputs):
                    other = first.setdefault(call.inputs[place], port)
                    parent[root(port)] = root(other)
    groups: dict[Port, list[Port]] = {}
    for port in parent:
        groups.setdefault(root(port), []).append(port)
    return list(groups.values())


def norm_links(
    walker: Walker, ports: dict[str, tuple[str, ...]]
) -> list[NormLink]:
    """Finds the layers that read a layer or group norm.

    Args:
        walker (Walker): The trace.
        ports (dict[str, tuple[str, ...]]): Ports of each layer.

    Returns:
        list[NormLink]: In execution order; norms that feed no layer are
        left out.
    """
    norms: dict[str, list[int]] = {}
    for op in walker.ops:
        module = walker.record.modules.get(op.module) if op.module else None
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            norms.setdefault(op.module, []).extend(op.outputs)
    links = []
    for norm, outputs in norms.items():
        layers, via, fed, exclusive = _follow(walker, ports, outputs)
        exclusive = exclusive and all(
            len(walker.calls[name]) == fed[name] for name in layers
        )
        if layers:
            links.append(NormLink(norm, tuple(layers), tuple(via), exclusive))
    return links


def _follow(
    walker: Walker, ports: dict[str, tuple[str, ...]], starts: list[int]
) -> tuple[list[str], list[str], dict, bool]:
    """Layers ahead, ops between, arrivals at each layer, and no others."""
    via: dict[str, None] = {}
    fed: dict[str, int] = {}
    exclusive = True
    todo, seen = list(starts), set(starts)
    while todo:
        number = todo.pop(0)
        if number in walker.record.outputs:
            exclusive = False
        for op, place in walker.readers[number]:
            if (
                walker.kind(op) == 'layer'
                and place == 0
                and len(ports[op.module]) == 1
            ):
                fed[op.module] = fed.get(op.module, 0) + 1
            elif (
                walker.kind(op) == 'shape'
                and place == 0
                and canonical(op.name) not in _JOINS
            ):
                via[op.name] = None
                new = [v for v in op.outputs if v not in seen]
                seen.update(new)
                todo += new
            else:
                exclusive = False
    layers = [name for name in walker.calls if name in fed]
    return layers, list(via), fed, exclusive
