# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which norm feeds which layer, and who shares a tensor."""

from torch import nn

from ..structures import NormLink, Op, Port
from .vocabulary import ADD, canonical
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
        link = _Way(walker, ports).follow(norm, outputs)
        if link.layers or link.sums:
            links.append(link)
    return links


class _Way:
    """From a norm to the layers that read it.

    Args:
        walker (Walker): The trace.
        ports (dict[str, tuple[str, ...]]): Ports of each layer.
    """

    def __init__(
        self, walker: Walker, ports: dict[str, tuple[str, ...]]
    ) -> None:
        self.walker = walker
        self.ports = ports
        self.via: dict[str, None] = {}
        self.pads: dict[str, None] = {}
        self.fed: dict[str, int] = {}
        self.sums: set[str] = set()
        self.exclusive = True

    def follow(self, norm: str, starts: list[int]) -> NormLink:
        """Goes ahead through ops that move numbers, and through sums."""
        added: list[int] = []
        todo, seen = list(starts), set(starts)
        while todo:
            number = todo.pop(0)
            if number in self.walker.record.outputs:
                self.exclusive = False
            for op, place in self.walker.readers[number]:
                if self._reads(op, place):
                    self.fed[op.module] = self.fed.get(op.module, 0) + 1
                elif self._moves(op, place):
                    self._passed(op, number)
                    new = [v for v in op.outputs if v not in seen]
                    seen.update(new)
                    todo += new
                else:
                    self.exclusive = False
                    added += op.outputs if canonical(op.name) in ADD else []
        self._behind_sums(added, seen)
        calls = self.walker.calls
        return NormLink(
            norm,
            tuple(name for name in calls if name in self.fed),
            tuple(self.via),
            self.exclusive
            and all(len(calls[name]) == n for name, n in self.fed.items()),
            tuple(name for name in calls if name in self.sums),
            tuple(self.pads),
        )

    def _reads(self, op: Op, place: int) -> bool:
        return (
            self.walker.kind(op) == 'layer'
            and place == 0
            and len(self.ports[op.module]) == 1
        )

    def _moves(self, op: Op, place: int) -> bool:
        return (
            self.walker.kind(op) == 'shape'
            and place == 0
            and canonical(op.name) not in _JOINS
        )

    def _passed(self, op: Op, given: int) -> None:
        """Notes what is done on the way, and where it may be padded.

        Whoever parts a map in windows (a view of more than four axes)
        pads it where they do not fit, which need not be so in this forward.
        """
        self.via[op.name] = None
        values = self.walker.values
        shapes = [values[i].shape for i in (given, *op.outputs)]
        if 'pad' in canonical(op.name) or any(len(s) > 4 for s in shapes):
            self.pads[op.scope] = None

    def _behind_sums(self, added: list[int], seen: set[int]) -> None:
        """Layers that read what was made of the norm by adding to it."""
        todo = [v for v in added if v not in seen]
        while todo:
            number = todo.pop(0)
            if number in seen:
                continue
            seen.add(number)
            for op, place in self.walker.readers[number]:
                if self._reads(op, place):
                    self.sums.add(op.module)
                elif self._moves(op, place) or canonical(op.name) in ADD:
                    todo += op.outputs
