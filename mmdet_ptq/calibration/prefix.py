# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forwards of a whole detector that begin where something changed.

A search changes one range at a time and looks at the detector's outputs.
What the layers before the changed one give stays the same, and need not be
computed again: each call of a layer is kept until it, or a call before it,
reads something else. What lies between layers is computed every time.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..context import current
from ..layers import QuantLayer

Key = tuple[str, int]
"""Name of a layer and which of its calls in one forward."""


@dataclass
class _Call:
    """One call of a layer.

    Attributes:
        key (Key): Which.
        names (set[str]): The layer, and those that ran inside it.
        output (Tensor, optional): None if it is not kept.
    """

    key: Key
    names: set[str]
    output: Tensor | None = None

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return 0 if self.output is None else self.output.nbytes


class Prefix:
    """What the calls of layers gave in the last forward of each image.

    Args:
        layers (Mapping[str, QuantLayer]): All twins of the detector.
        room (int): Bytes that outputs may take where they are computed;
            calls beyond them are computed every time.

    Attributes:
        computed (int): Calls of layers that were computed so far.
    """

    def __init__(self, layers: Mapping[str, QuantLayer], room: int) -> None:
        self.layers = layers
        self.computed = 0
        self._room = room
        self._calls: dict[Hashable, list[_Call]] = {}
        self._changed: dict[Hashable, set[str]] = {}
        # of the forward that runs now
        self._stored: dict[Key, _Call] = {}
        self._seen: list[_Call] | None = None
        self._counts: dict[str, int] = {}
        self._inside: _Call | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Lets the layers give what is kept, in forwards of :meth:`run`."""
        forwards = {}
        for name, layer in self.layers.items():
            forwards[name] = vars(layer).get('forward')
            layer.forward = partial(self._forward, name, layer, layer.forward)
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                del layer.forward
                if forwards[name] is not None:
                    layer.forward = forwards[name]
            self._calls.clear()

    def change(self, names: Collection[str]) -> None:
        """Says which layers may give something else from now on.

        Args:
            names (Collection[str]): Those whose quantizers, weights or
                switches changed.
        """
        for changed in self._changed.values():
            changed.update(names)

    def run(self, image: Hashable, forward: Callable[[], Any]) -> Any:
        """Runs the detector on an image; the same as ``forward()``.

        Args:
            image (Hashable): Tells the image from others. Its forwards
                differ by what :meth:`change` was told, and by nothing else.
            forward (Callable): Runs the detector on it.
        """
        past = self._calls.pop(image, [])
        changed = self._changed.pop(image, set())
        same = next(
            (i for i, call in enumerate(past) if call.names & changed),
            len(past),
        )
        self._room += sum(call.size for call in past[same:])
        self._stored = {call.key: call for call in past[:same]}
        self._seen, self._counts, self._inside = [], {}, None
        del past
        try:
            found = forward()
            self._calls[image] = self._seen
            self._changed[image] = set()
        finally:
            self._stored, self._seen = {}, None
        return found

    def _forward(
        self,
        name: str,
        layer: QuantLayer,
        forward: Callable,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._seen is None:
            return forward(*args, **kwargs)
        if self._inside is not None:  # the outer layer is what is kept
            self._inside.names.add(name)
            return forward(*args, **kwargs)
        key = (name, self._counts.get(name, 0))
        self._counts[name] = key[1] + 1
        call = self._stored.get(key)
        if call is not None and call.output is not None:
            current().take_level(layer.call_key, layer.levels)
            self._seen.append(call)
            # a copy: a residual sum may work in place on what it is given
            return call.output.clone()
        call = self._inside = _Call(key, {name})
        try:
            output = forward(*args, **kwargs)
        finally:
            self._inside = None
        self.computed += 1
        self._keep(call, output)
        self._seen.append(call)
        return output

    def _keep(self, call: _Call, output: Any) -> None:
        if isinstance(output, Tensor) and output.nbytes <= self._room:
            call.output = output.detach().clone()
            self._room -= call.size


def room_for_outputs(limit: int, device: torch.device) -> int:
    """Bytes for :class:`Prefix`: of a GPU at most a third of what is free.

    Args:
        limit (int): Bytes that activations may take.
        device (torch.device): Where they are computed.
    """
    if device.type != 'cuda':
        return limit
    free, _ = torch.cuda.mem_get_info(device)
    return min(limit, free // 3)
