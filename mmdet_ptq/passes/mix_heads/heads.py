# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Where the channels of attention heads are made and read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...structures import Port, Scaling

#: of a layer, ``(H, d)``: its channel of each channel of each head
Places = dict[str, Tensor]


@dataclass(frozen=True)
class Side:
    """One operand of an attention's product.

    Attributes:
        port (Port): Where it arrives.
        axis (int): Its axis of channels, -1 or -2.
        head (int): Its axis of heads, from the end; 0: there is one head.
        makers (Places): Layers whose sum it is.
    """

    port: Port
    axis: int
    head: int
    makers: Places

    def nothing(self, device: torch.device) -> tuple[Tensor, ...]:
        """Sums of no rows, float64: their count, and two moments."""
        heads, size = next(iter(self.makers.values())).shape
        shapes = (), (heads, size), (heads, size, size)
        return tuple(
            torch.zeros(shape, dtype=torch.float64, device=device)
            for shape in shapes
        )

    def rows(self, x: Tensor) -> Tensor:
        """``(H, n, d)`` of an operand."""
        if not self.head:
            return x.movedim(self.axis, -1).flatten(0, -2)[None]
        head = self.head - (self.head > self.axis)
        return x.movedim(self.axis, -1).movedim(head, 0).flatten(1, -2)


@dataclass(frozen=True)
class Heads:
    """Heads of an attention whose channels may be mixed.

    Attributes:
        kind (str): ``'qk'`` or ``'pv'``.
        name (str): The product.
        sides (tuple[Side, ...]): Queries and keys, or values.
        readers (Places): Layers that read what comes of the values.
    """

    kind: str
    name: str
    sides: tuple[Side, ...]
    readers: Places

    @property
    def changed(self) -> tuple[str, ...]:
        """Layers whose weights are mixed."""
        made = [name for side in self.sides for name in side.makers]
        return *made, *self.readers

    @property
    def ends(self) -> tuple[str, ...]:
        """Layers whose outputs have to stay as they are."""
        return (self.name,) if self.kind == 'qk' else (*self.readers,)


def heads_of(scaling: Scaling, layers: Mapping[str, nn.Module]) -> Heads | str:
    """The heads whose channels a scaling is of, or why there are none.

    Args:
        scaling (Scaling): Of kind ``'qk'`` or ``'pv'``.
        layers (Mapping[str, nn.Module]): By name.
    """
    names = {name for name, _ in scaling.ports}
    if len(names) != 1 or len(scaling.ports) != 1 + (scaling.kind == 'qk'):
        return 'several products read its channels'
    for name in (*scaling.outputs, *scaling.inputs):
        layer = layers.get(name)
        plain = isinstance(layer, nn.Conv2d | nn.Linear)
        if not plain or getattr(layer, 'groups', 1) != 1:
            return f'{name} is no linear layer and no dense convolution'
    sides, ids = [], None
    for port, index in sorted(scaling.ports.items()):
        found = _side(port, index, scaling)
        if isinstance(found, str):
            return found
        side, mine = found
        if ids is not None and not torch.equal(ids, -mine):
            return 'its queries and keys have other channels'
        sides.append(side)
        ids = mine
    assert ids is not None
    readers = {n: _places(i, ids.abs()) for n, i in scaling.inputs.items()}
    if any(p is None for p in readers.values()):
        return 'some of its channels are read elsewhere'
    (name,) = names
    kept = {n: p for n, p in readers.items() if p is not None}
    return Heads(scaling.kind, name, tuple(sides), kept)


def _side(
    port: Port, index: Tensor, scaling: Scaling
) -> tuple[Side, Tensor] | str:
    """A side, and the labels of its channels, int64 ``(H, d)``.

    Labels are those of :class:`Scaling`: k for the k-th factor, -k for its
    inverse.
    """
    axis = -1 if index.shape[-2] == 1 else -2
    wide = [i for i in range(-index.dim(), 0) if index.shape[i] > 1]
    others = [i for i in wide if i != axis]
    if axis not in wide or len(others) > 1:
        return 'its heads lie along several axes'
    head = others[0] if others else 0
    side = Side(port, axis, head, {})
    ids = side.rows(index)[:, 0]
    sign = 1 if bool((ids > 0).all()) else -1
    if not bool((sign * ids > 0).all()):
        return 'some channels of its heads cannot be mixed'
    makers = {}
    for name, made in scaling.outputs.items():
        if bool((made * sign > 0).any()):
            places = _places(made, ids)
            if places is None:
                return f'{name} makes some channels of its heads'
            makers[name] = places
    return Side(port, axis, head, makers), ids


def _places(index: Tensor, ids: Tensor) -> Tensor | None:
    """Where each label is in an index, if each is there once.

    Args:
        index (Tensor): Labels of the channels of a layer, int64 ``(C,)``.
        ids (Tensor): Labels of the channels of heads, int64 ``(H, d)``.

    Returns:
        Tensor | None: Channels of the layer, int64 ``(H, d)``.
    """
    found = index[None] == ids.reshape(-1, 1)
    if not bool((found.sum(1) == 1).all()):
        return None
    return found.float().argmax(1).view_as(ids)
