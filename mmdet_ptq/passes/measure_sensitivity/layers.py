# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The error that a layer makes, beside the one that it is given."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...calibration import Images, Session, frozen
from ...context import current, forward_context
from ...detectors import adapter_for
from ...layers import QuantLayer, float_mode
from .measure import weights_held

KINDS = ('own', 'received', 'total')
#: told name, arguments, level and output of each call of a layer
Heard = Callable[[str, tuple, dict, int, Tensor], None]


@torch.no_grad()
def layer_errors(session: Session) -> dict[str, dict[str, float | None]]:
    """Errors of the outputs of layers, over the squares of the float ones.

    Args:
        session (Session): After its last pass, its weights not baked. Its
            feed holds the images.

    Returns:
        dict[str, dict[str, float | None]]: Of each quantized layer that is
        called: ``own``, what it makes of the input that it has in the float
        detector; ``received``, what it makes in float of the input that it
        has in the quantized one; ``total``, what it gives in the quantized
        one. None where rows of the two detectors do not agree.
    """
    layers = {
        name: layer
        for name, layer in session.layers.items()
        if layer.weight_quantizer is not None or layer.act_quantizers
    }
    sums = {name: _Sums() for name in layers}
    with (
        session.cache() as cache,
        frozen(session.model),
        weights_held(session),
    ):
        adapter = adapter_for(session.model, session.graph, False)
        images = Images(session, cache, adapter, [])
        for j in images.mine:
            exact: dict[str, list[Any]] = defaultdict(list)
            _float(images, j, layers, sums, exact)
            _quantized(images, j, layers, sums, exact)
            cache.drop(list(exact.values()))
    return {name: found.ratios() for name, found in sums.items() if found.any}


def _float(
    images: Images,
    j: int,
    layers: dict[str, QuantLayer],
    sums: dict[str, '_Sums'],
    exact: dict[str, list[Any]],
) -> None:
    def heard(
        name: str, args: tuple, kwargs: dict, level: int, y: Tensor
    ) -> None:
        found = _called(layers[name], args, kwargs, level, True)
        sums[name].add('own', found, y)
        exact[name].append(images.cache.keep(y, exact=True))

    with float_mode(images.model), hearing(layers, heard):
        images.run(j)


def _quantized(
    images: Images,
    j: int,
    layers: dict[str, QuantLayer],
    sums: dict[str, '_Sums'],
    exact: dict[str, list[Any]],
) -> None:
    seen: dict[str, int] = defaultdict(int)

    def heard(
        name: str, args: tuple, kwargs: dict, level: int, y: Tensor
    ) -> None:
        at = seen[name]
        seen[name] += 1
        if at >= len(exact[name]):
            sums[name].whole = False
            return
        target = images.cache.fetch(exact[name][at])
        sums[name].add('total', y, target)
        found = _called(layers[name], args, kwargs, level, False)
        sums[name].add('received', found, target)

    with hearing(layers, heard):
        images.run(j)
    for name, calls in exact.items():
        if seen[name] != len(calls):
            sums[name].whole = False


def _called(
    layer: QuantLayer, args: tuple, kwargs: dict, level: int, quantized: bool
) -> Tensor:
    """Runs a layer alone on what it was given, and leaves it as it was."""
    before = layer.quantize_weight, layer.quantize_act
    layer.switch(quantized, quantized)
    try:
        with forward_context(current().images) as forward:
            forward.set_level(layer.call_key, level)
            # not by a call, which would be heard again
            found: Tensor = layer.forward(*args, **kwargs)
            return found
    finally:
        layer.switch(*before)


@contextmanager
def hearing(layers: dict[str, QuantLayer], heard: Heard) -> Iterator[None]:
    """Tells every call of layers, after it.

    Args:
        layers (dict[str, QuantLayer]): By name.
        heard (Callable): Told name, arguments as the layer was given them,
            pyramid level and output.
    """

    def after(
        name: str, layer: QuantLayer, args: tuple, kwargs: dict, y: Tensor
    ) -> None:
        level = current().last_level(layer.call_key, layer.levels)
        heard(name, args, kwargs, level, y)

    hooks = [
        layer.register_forward_hook(partial(after, name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Sums:
    """Squared errors of one layer, and squares of its float outputs."""

    def __init__(self) -> None:
        self.whole = True
        self.any = False
        self._errors: dict[str, Tensor | float] = dict.fromkeys(KINDS, 0.0)
        self._squares: dict[str, Tensor | float] = dict.fromkeys(KINDS, 0.0)

    def add(self, kind: str, y: Tensor, target: Tensor) -> None:
        self.any = True
        if y.shape != target.shape:
            self.whole = False
            return
        error = (y - target).double().square().sum()
        self._errors[kind] = self._errors[kind] + error
        square = target.double().square().sum()
        self._squares[kind] = self._squares[kind] + square

    def ratios(self) -> dict[str, float | None]:
        """Of each kind; None if rows differ or the float output is 0."""
        found: dict[str, float | None] = {}
        for kind in KINDS:
            error = float(self._errors[kind])
            square = float(self._squares[kind])
            known = square > 0 and (self.whole or kind == 'own')
            found[kind] = error / square if known else None
        return found
