# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Weights and biases that more than one module or function reads."""

from dataclasses import dataclass, field

from torch import nn

from ..layers import twin_class
from .walk import Walker


@dataclass
class Sharing:
    """Who else has the parameters of quantizable layers.

    Attributes:
        why (dict[str, str]): Layer to a sentence; layers that share nothing
            are missing. What is written into such a layer changes others.
        tied (dict[str, tuple[str, ...]]): Layer to the others that have the
            very same weight, where all of them are quantizable alike.
        held (set[str]): Layers of ``why`` whose weight cannot be quantized:
            something reads it that is no such layer.
        norms (dict[str, str]): The same as ``why``, for what is no layer
            and has a weight or a bias.
    """

    why: dict[str, str] = field(default_factory=dict)
    tied: dict[str, tuple[str, ...]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    norms: dict[str, str] = field(default_factory=dict)


def find_sharing(walker: Walker) -> Sharing:
    """Finds them in a trace.

    Args:
        walker (Walker): The trace.

    Returns:
        Sharing: For the layers that were called.
    """
    found, owners = Sharing(), _owners(walker.record.modules)
    for name in walker.calls:
        layer = walker.record.modules[name]
        for kind in ('weight', 'bias'):
            parameter = layer._parameters.get(kind)
            if parameter is None:
                continue
            others = [o for o in owners[id(parameter)] if o != (name, kind)]
            reader = walker.record.reads.get(id(parameter))
            if others:
                known = ', '.join(sorted(owner for owner, _ in others))
                found.why[name] = f'its {kind} is also that of {known}'
            if reader is not None:
                found.why[name] = (
                    f'its {kind} is also read by a function in '
                    + (repr(reader) if reader else 'the detector itself')
                )
                found.held.add(name)
            if kind == 'weight' and others:
                found.tied[name] = tuple(owner for owner, _ in others)
                if not all(_alike(walker, name, o) for o, _ in others):
                    found.held.add(name)
    for name, module in walker.record.modules.items():
        if name not in walker.calls:
            for kind, parameter in module._parameters.items():
                if parameter is not None and (
                    len(owners[id(parameter)]) > 1
                    or id(parameter) in walker.record.reads
                ):
                    found.norms[name] = f'something else reads its {kind}'
    _spread(found)
    return found


def _owners(modules: dict[str, nn.Module]) -> dict[int, list]:
    """By the id of a parameter: modules, and its name in each."""
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in modules.items():
        for kind, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append((name, kind))
    return owners


def _alike(walker: Walker, name: str, other: str) -> bool:
    """Whether another owner can share a quantizer."""
    modules = walker.record.modules
    return (
        other in walker.calls
        and twin_class(modules[name]).weight_axis
        == twin_class(modules[other]).weight_axis
    )


def _spread(found: Sharing) -> None:
    """What is held holds those it is tied to."""
    for name, others in found.tied.items():
        if found.held & {name, *others}:
            found.held.add(name)
    found.tied = {
        n: others for n, others in found.tied.items() if n not in found.held
    }
