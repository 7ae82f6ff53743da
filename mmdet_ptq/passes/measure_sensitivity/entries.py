# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What is evaluated, in an order in which much need not be computed again."""

from collections.abc import Sequence
from dataclasses import dataclass

from .parts import Part

Names = frozenset[str]
#: what there is without any part
ALL = 'all'


@dataclass(frozen=True)
class Entry:
    """One evaluation: the layers that are quantized in it.

    Attributes:
        key (str): ``'alone/weight/NAME'``, ``'alone/act/NAME'``,
            ``'without/weight/NAME'``, ``'without/act/NAME'``, ``'both/NAME'``
            or :data:`ALL`.
        weights (frozenset[str]): Layers whose weights are quantized.
        acts (frozenset[str]): Layers whose inputs are.
    """

    key: str
    weights: Names
    acts: Names

    @classmethod
    def of_all(cls, parts: Sequence[Part]) -> 'Entry':
        """Everything that is quantized at all."""
        layers = [part for part in parts if not part.is_role]
        weights = (n for part in layers for n in part.weights)
        acts = (n for part in layers for n in part.acts)
        return cls(ALL, frozenset(weights), frozenset(acts))

    @classmethod
    def both(cls, part: Part) -> 'Entry':
        """One part alone, its weights and its inputs."""
        weights, acts = frozenset(part.weights), frozenset(part.acts)
        return cls(f'both/{part.name}', weights, acts)

    def changes(self, other: 'Entry') -> Names:
        """Layers that are set otherwise in another evaluation."""
        return (self.weights ^ other.weights) | (self.acts ^ other.acts)


def entries_of(parts: Sequence[Part]) -> list[Entry]:
    """All quantized; each part alone; all but each part.

    Args:
        parts (Sequence[Part]): Layers in execution order, then roles.

    Returns:
        list[Entry]: Weights and inputs apart, in execution order: what
        comes before a part is the same in the next evaluation.
    """
    every, none = Entry.of_all(parts), frozenset[str]()
    found = [every]
    for layers in ([p for p in parts if not p.is_role], roles_of(parts)):
        for part in layers:
            weights, acts = frozenset(part.weights), frozenset(part.acts)
            if weights:
                key = f'alone/weight/{part.name}'
                found.append(Entry(key, weights, none))
            if acts:
                found.append(Entry(f'alone/act/{part.name}', none, acts))
        for part in layers:
            weights = every.weights - frozenset(part.weights)
            acts = every.acts - frozenset(part.acts)
            if part.weights:
                key = f'without/weight/{part.name}'
                found.append(Entry(key, weights, every.acts))
            if part.acts:
                key = f'without/act/{part.name}'
                found.append(Entry(key, every.weights, acts))
    return found


def roles_of(parts: Sequence[Part]) -> list[Part]:
    """The parts that are roles."""
    return [part for part in parts if part.is_role]
