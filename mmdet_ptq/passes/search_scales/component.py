# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Layers whose quantizers depend on each other, and their search."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers import QuantLayer
from ...quantizers import BaseQuantizer
from ...records import SearchRecord
from ...structures import LayerGraph, Port
from .objectives import Objective
from .operands import Sampled
from .search import Grid, search
from .terms import Terms

#: positions and values of a row without which nothing is searched
LEAST = 16

Held = tuple[str, str]
"""Name of a layer, and ``'weight'`` or a port."""


@dataclass(frozen=True)
class Component:
    """Layers that share activation quantizers, directly or not.

    Attributes:
        layers (tuple[str, ...]): In execution order.
        weights (tuple[Held, ...]): Weights to be searched.
        groups (tuple[tuple[Held, ...], ...]): Ports to be searched, those
            that share a quantizer together.
    """

    layers: tuple[str, ...]
    weights: tuple[Held, ...]
    groups: tuple[tuple[Held, ...], ...]


def components(
    names: Sequence[str],
    groups: Sequence[Sequence[Port]],
    weights: Sequence[str],
) -> list[Component]:
    """Parts of a detector that can be searched apart from each other.

    Args:
        names (Sequence[str]): Layers, in execution order.
        groups (Sequence[Sequence[Port]]): Ports that share a quantizer, to
            be searched.
        weights (Sequence[str]): Layers whose weight is to be searched.

    Returns:
        list[Component]: In the order of their first layers; those without
        anything to search are left out.
    """
    home = {name: name for name in names}

    def root(name: str) -> str:
        while home[name] != name:
            name = home[name]
        return name

    for group in groups:
        for name, _ in group[1:]:
            home[root(name)] = root(group[0][0])
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(root(name), []).append(name)
    made = [
        Component(
            tuple(members),
            tuple((n, 'weight') for n in members if n in weights),
            tuple(tuple(g) for g in groups if root(g[0][0]) == key),
        )
        for key, members in found.items()
    ]
    return [one for one in made if one.weights or one.groups]


class ComponentSearch:
    """Searches all quantizers of a component.

    Args:
        layers (Mapping[str, QuantLayer]): All twins by name.
        graph (LayerGraph): Knows what reads a product.
        data (Mapping[str, list[Sampled]]): Samples of its layers.
        objective (Objective): What is to be least.
        grid (Grid): What is tried.
    """

    def __init__(
        self,
        layers: Mapping[str, QuantLayer],
        graph: LayerGraph,
        data: Mapping[str, list[Sampled]],
        objective: Objective,
        grid: Grid,
    ) -> None:
        self.layers = layers
        self.objective = objective
        self.grid = grid
        self.notes: list[str] = []
        self.records: dict[Held, SearchRecord] = {}
        self.terms = {
            name: Terms(layers[name], some, objective, _ranked(graph, name))
            for name, some in data.items()
        }

    def run(
        self, part: Component, rounds: int, weights_first: bool
    ) -> list[SearchRecord]:
        """Searches weights and inputs in turn.

        Args:
            part (Component): What is searched.
            rounds (int): How often.
            weights_first (bool): Whether a round begins with weights.

        Returns:
            list[SearchRecord]: One for each quantizer that was searched.
        """
        weights = [(one,) for one in part.weights]
        turns = [*weights, *part.groups]
        if not weights_first:
            turns = [*part.groups, *weights]
        turns = [held for held in turns if not self._without(held)]
        for _ in range(rounds):
            for held in turns:
                self._one(held)
        return list(self.records.values())

    def _quantizer(self, one: Held) -> BaseQuantizer:
        name, tensor = one
        layer = self.layers[name]
        if tensor == 'weight':
            return layer.weight_quantizer
        return layer.act_quantizers[tensor]

    def _without(self, held: Sequence[Held]) -> bool:
        """Notes why a quantizer stays as it is."""
        quantizer = self._quantizer(held[0])
        levels = quantizer.num_levels()
        for name, tensor in held:
            why = ''
            data = self.terms[name].data
            positions = sum(one.positions for one in data)
            if positions < LEAST:
                why = f'{positions} sampled positions are too few'
            elif tensor != 'weight' and len({o.level for o in data}) < levels:
                why = 'a pyramid level gave no samples'
            elif self.terms[name].of(tensor) is None:
                why = 'rows of its quantizer lie across the columns'
            if why:
                self.notes.append(
                    f'{name}: {why}, so the grid of its {tensor} stays as it '
                    'is (SearchScales)'
                )
                return True
        return False

    def _one(self, held: Sequence[Held]) -> None:
        quantizer = self._quantizer(held[0])
        terms = [t for n, tensor in held for t in self.terms[n].of(tensor)]
        name, tensor = held[0]
        samples = self.terms[name].samples(tensor)
        before, after = search(
            quantizer,
            terms,
            joined(samples, quantizer.num_levels()),
            self.objective,
            self.grid,
        )
        known = self.records.get(held[0])
        self.records[held[0]] = SearchRecord(
            name,
            tensor,
            [n for n, _ in held],
            before if known is None else known.before,
            after,
        )


def _ranked(graph: LayerGraph, name: str) -> bool:
    """Whether a layer is the product of queries and keys."""
    node = graph.layers[name]
    softmax = any('softmax' in r for r in node.port_roles.values())
    return len(node.ports) > 1 and 'attention' in node.roles and not softmax


def joined(samples: dict[int, Tensor], levels: int) -> Tensor:
    """Values ``[K, S]`` of all levels: in a row, or each in rows of its own.

    Args:
        samples (dict[int, Tensor]): ``[K, S]`` of each level, in order.
        levels (int): Levels with rows of their own.
    """
    parts = list(samples.values())
    if levels == 1:
        return torch.cat(parts, 1)
    most = max(one.shape[1] for one in parts)
    at = torch.arange(most, device=parts[0].device)
    # again from the start where a level has fewer
    return torch.cat([one[:, at % one.shape[1]] for one in parts])
