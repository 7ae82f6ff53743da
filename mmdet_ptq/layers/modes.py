# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which layers of a model are quantized for a while."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from .base import QuantLayer, quant_layers

Model = nn.Module | Mapping[str, QuantLayer]
"""A model, or its twins by name."""


@contextmanager
def float_mode(
    model: Model, weight: bool = True, act: bool = True
) -> Iterator[None]:
    """Runs a quantized model with float weights and activations.

    Args:
        model (nn.Module | Mapping[str, QuantLayer]): A model with twins.
        weight (bool): Whether weights go float. Defaults to True.
        act (bool): Whether activations go float. Defaults to True.

    Raises:
        RuntimeError: If weights are baked: the float ones are gone.
    """
    layers = _twins(model)
    yield from _switched(
        layers,
        {
            n: (m.quantize_weight and not weight, m.quantize_act and not act)
            for n, m in layers.items()
        },
    )


@contextmanager
def quantizing(
    model: Model, weights: Collection[str], acts: Collection[str]
) -> Iterator[None]:
    """Quantizes exactly these layers and leaves the others float.

    Args:
        model (nn.Module | Mapping[str, QuantLayer]): A model with twins.
        weights (Collection[str]): Layers whose weights are quantized.
        acts (Collection[str]): Layers whose inputs are quantized.

    Raises:
        ValueError: If a name is not that of a twin.
        RuntimeError: If a weight that should be float is baked.
    """
    layers = _twins(model)
    strange = sorted({*weights, *acts} - set(layers))
    if strange:
        raise ValueError(f'no quantizable layers: {", ".join(strange[:8])}')
    yield from _switched(
        layers, {n: (n in weights, n in acts) for n in layers}
    )


def _twins(model: Model) -> Mapping[str, QuantLayer]:
    return quant_layers(model) if isinstance(model, nn.Module) else model


def _switched(
    layers: Mapping[str, QuantLayer], wanted: dict[str, tuple[bool, bool]]
) -> Iterator[None]:
    baked = any(
        m.baked and m.weight_quantizer is not None and not wanted[n][0]
        for n, m in layers.items()
    )
    if baked:
        raise RuntimeError(
            'the weights are baked, the float ones are gone; load the float '
            'checkpoint into a fresh model, or use weight=False'
        )
    before = {
        n: (m.quantize_weight, m.quantize_act) for n, m in layers.items()
    }
    for name, layer in layers.items():
        layer.switch(*wanted[name])
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.switch(*before[name])
