# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Forwards of a detector whose units change one after the other.

A pass that treats units in execution order runs the detector again and
again, and what comes before the unit gives the same each time. Of the
outermost modules that have ended before it, the outputs are kept, and what
ran inside them is not called again: of a backbone that is done its pyramid
stays, of one that is being treated the stages and blocks that are done.
"""

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..context import current
from ..layers import QuantLayer, quant_layers
from ..structures import Unit
from .cache import ActivationCache

Key = tuple[str, int]
"""Module name and which of its calls inside the same call around it."""

_PLAIN = (Tensor, int, float, bool, str, type(None))


@dataclass
class _Call:
    """One call of a module, or the whole forward.

    Attributes:
        names (set[str]): Layers that ran inside it.
        inside (dict): The calls inside it, in order, until it has ended.
        counts (dict): How often each module was called in it so far.
        ended (bool): Whether its output is kept.
        output (Any): The output, in the cache.
        left_at (list[int]): Pyramid levels its layers were left at.
    """

    names: set[str] = field(default_factory=set)
    inside: dict[Key, '_Call'] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    ended: bool = False
    output: Any = None
    left_at: list[int] = field(default_factory=list)


class Sweep:
    """What modules gave in the last forward of each image.

    Args:
        model (nn.Module): The detector.
        units (Sequence[Unit]): What changes at once; no output is kept of
            what is inside one.
        cache (ActivationCache): Where outputs are kept.

    Attributes:
        computed (int): Calls of modules that were computed so far.
    """

    def __init__(
        self, model: nn.Module, units: Sequence[Unit], cache: ActivationCache
    ) -> None:
        self.computed = 0
        self._cache = cache
        self._modules = _outside(model, units)
        self._parts = {
            name: [
                m
                for m in module.modules()
                if isinstance(m, QuantLayer) and m.levels > 1
            ]
            for name, module in self._modules.items()
        }
        self._layers = {
            name: set(_joined(name, quant_layers(module)))
            for name, module in self._modules.items()
        }
        self._forwards: dict[Hashable, _Call] = {}
        self._changed: dict[Hashable, set[str]] = {}
        # of the forward that runs now
        self._around: _Call | None = None
        self._soon: set[str] = set()
        self._keeps = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Lets modules give what is kept, in forwards of :meth:`run`."""
        own = {}
        for name, module in self._modules.items():
            own[name] = vars(module).get('forward')
            module.forward = partial(self._forward, name, module.forward)
        try:
            yield
        finally:
            for name, module in self._modules.items():
                del module.forward
                if own[name] is not None:
                    module.forward = own[name]
            for call in self._forwards.values():
                self._drop(call)
            self._forwards.clear()

    def change(self, names: Collection[str]) -> None:
        """Says which layers may give something else from now on.

        Args:
            names (Collection[str]): Those whose quantizers, weights or
                switches changed.
        """
        for changed in self._changed.values():
            changed.update(names)

    def run(
        self,
        image: Hashable,
        forward: Callable[[], Any],
        soon: Collection[str] = (),
    ) -> Any:
        """Runs the detector on an image; the same as ``forward()``.

        Args:
            image (Hashable): Tells the image from others. Its forwards
                differ by what :meth:`change` was told, and by nothing else.
            forward (Callable): Runs the detector on it, or its beginning.
            soon (Collection[str]): Layers that change before the next
                forward: what comes after them is not kept.
        """
        whole = self._forwards.setdefault(image, _Call())
        self._forget(whole, self._changed.get(image, set()))
        self._changed[image] = set()
        whole.counts = {}
        self._around, self._soon, self._keeps = whole, set(soon), True
        try:
            return forward()
        finally:
            self._around = None

    def _forward(
        self, name: str, forward: Callable, *args: Any, **kwargs: Any
    ) -> Any:
        around = self._around
        if around is None:
            return forward(*args, **kwargs)
        count = around.counts.get(name, 0)
        around.counts[name] = count + 1
        call = around.inside.setdefault((name, count), _Call())
        parts = self._parts[name]
        if call.ended:
            for layer, level in zip(parts, call.left_at, strict=True):
                current().set_level(layer.call_key, level)
            # copies: a residual sum may work in place on what it is given
            return tree_map_only(
                Tensor, torch.clone, self._cache.fetch(call.output)
            )
        call.counts = {}
        call.names |= self._layers[name]
        self._around = call
        try:
            output = forward(*args, **kwargs)
        finally:
            self._around = around
        self.computed += 1
        self._keeps = self._keeps and not call.names & self._soon
        # what is no tensor may be changed by those who get it
        if self._keeps and all(
            type(leaf) in _PLAIN for leaf in tree_leaves(output)
        ):
            self._drop(call)
            call.output = self._cache.keep(output, exact=True)
            call.left_at = [
                current().next_level(layer.call_key, layer.levels)
                for layer in parts
            ]
            call.ended = True
        return output

    def _forget(self, call: _Call, changed: set[str]) -> bool:
        """Forgets the first call that changed, and all that came after it.

        Returns:
            bool: Whether there was one.
        """
        found = False
        for key, one in list(call.inside.items()):
            if found or (one.ended and one.names & changed):
                self._drop(one)
                del call.inside[key]
                found = True
            elif not one.ended:
                found = self._forget(one, changed)
        return found

    def _drop(self, call: _Call) -> None:
        """Gives back what a call and those inside it hold."""
        for one in call.inside.values():
            self._drop(one)
        call.inside = {}
        self._cache.drop(call.output)
        call.output, call.ended = None, False


def _joined(name: str, inner: Collection[str]) -> Iterator[str]:
    return (f'{name}.{one}' if one else name for one in inner)


def _outside(model: nn.Module, units: Sequence[Unit]) -> dict[str, nn.Module]:
    """Modules that are not a part of a unit, and more than one operation.

    Besides those that hold layers, those that hold other modules: a RoI
    extractor takes longer than the layer behind it.
    """
    owner = {layer: unit.name for unit in units for layer in unit.layers}
    names = tuple(f'{unit.name}.' for unit in units)
    found = {}
    for name, module in model.named_modules():
        layers = list(_joined(name, quant_layers(module)))
        owners = {owner.get(layer) for layer in layers}
        unit = next(iter(owners), None)
        part = len(owners) == 1 and name.startswith(f'{unit}.')
        if not layers:
            part = name.startswith(names) or not [*module.children()]
        if name and not part:
            found[name] = module
    return found
