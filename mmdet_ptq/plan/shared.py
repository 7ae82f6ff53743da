# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers that share a weight: quantized alike, or not at all."""

from ..structures import LayerGraph, LayerPlan


def settle_shared(
    graph: LayerGraph, layers: dict[str, LayerPlan]
) -> list[str]:
    """Gives layers that share a weight one quantizer of it.

    A layer whose weight is read by something that is no quantizable layer
    stays float, input and all. So do layers that have one weight, if rules
    leave the weight of one of them float; else the spec of the first, in
    execution order, is that of all.

    Args:
        graph (LayerGraph): The surveyed model.
        layers (dict[str, LayerPlan]): What rules say; changed in place.

    Returns:
        list[str]: Sentences on what was decided.
    """
    notes: list[str] = []
    done: set[str] = set()
    for name, node in graph.layers.items():
        if node.held and layers[name].weight is not None:
            _leave_float(layers[name], node.shares)
            notes.append(f'{name}: stays float, {node.shares}')
        if node.tied and name not in done:
            group = [name, *node.tied]
            done.update(group)
            notes += _settle([layers[n] for n in group])
    return notes


def _settle(group: list[LayerPlan]) -> list[str]:
    """One weight for all of a group, in execution order."""
    names = ', '.join(one.name for one in group)
    spec = group[0].weight
    for other in group:
        if other.weight is None:
            quantized = [one for one in group if one.weight is not None]
            for one in quantized:
                why = f'its weight is also that of {other.name}, left float'
                _leave_float(one, why)
            return [f'{one.name}: stays float, {why}' for one in quantized]
    note = f'{names}: have one weight, neither learned nor corrected'
    if any(one.weight != spec for one in group):
        note += f'; rules say several things of it, that of {group[0].name} is'
        note += ' taken'
    for one in group:
        one.weight = spec
    return [note]


def _leave_float(one: LayerPlan, why: str) -> None:
    one.weight = None
    one.acts = dict.fromkeys(one.acts)
    one.why_float = why
