# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Channels that can be scaled without a change of the outputs."""

from collections.abc import Callable, Collection, Iterable
from functools import cache

import torch
from torch import Tensor, nn

from ..structures import Scaling, Scalings
from .channels import ChannelFlow
from .constraints import FIXED, Constraints, constraints_of
from .record import Trace
from .sharing import find_sharing
from .walk import Walker

#: why a channel has no factor that is tied to one which is fixed
_BESIDE = 'what reads it also reads what cannot be scaled'


def finder(
    records: Iterable[Trace],
    folds: Collection[str],
    is_leaf: Callable[[nn.Module], bool],
    ports: Callable[[nn.Module], tuple[str, ...]],
) -> Callable[[], Scalings]:
    """Will find what can be scaled in each of several forwards.

    Args:
        records (Iterable[Trace]): Forwards of one model.
        folds (Collection[str]): Batch norms that vanish into the layer
            before them.
        is_leaf (Callable): Whether a module is a quantizable layer.
        ports (Callable): Names of the quantizable inputs of a layer.

    Returns:
        Callable: Does it when it is called first. Gives the scalings, in
        the order of the model's modules, and of layers and norms with
        channels that cannot be scaled name to reason.
    """
    kept = list(records)

    @cache
    def find() -> Scalings:
        found = constraints_of(kept[0].modules, is_leaf)
        for record in kept:
            walker = Walker(record, is_leaf)
            sharing = find_sharing(walker)
            ChannelFlow(walker, ports, folds, sharing, found).follow()
        return solve(found)

    return find


def solve(found: Constraints) -> Scalings:
    """Groups channels by the factor that they have in common.

    Args:
        found (Constraints): Of all forwards.

    Returns:
        Scalings: As :func:`finder`.
    """
    roots = _Roots()
    inverse: set[int] = set()
    fixed = {FIXED: _BESIDE, **found.pinned}
    for a, b, power in found.alike:
        if not roots.join(a, b, power):
            fixed[a] = 'it is multiplied with itself'
        if power < 0:
            inverse |= {a, b}
    pinned: dict[int, str] = {}
    for label, why in fixed.items():
        pinned.setdefault(roots.of(label)[0], why)
    products = {roots.of(label)[0] for label in inverse}
    for label, why in found.added.items():
        # sums are queries and keys, or streams that all blocks add to
        root, _ = roots.of(label)
        if root not in products:
            pinned.setdefault(root, why)
    parts, unscaled = _Parts(roots), {}
    for name, labels in found.labels.items():
        why = parts.makes(name, labels, pinned)
        if why:
            unscaled[name] = why
    for name, labels in found.reads.items():
        parts.reads(name, labels)
    kinds = {roots.of(label)[0]: 'pv' for label in found.values}
    kinds |= dict.fromkeys(products, 'qk')
    return parts.scalings(found, kinds), unscaled


class _Roots:
    """Labels with a common factor, or inverse ones."""

    def __init__(self) -> None:
        self.parent: dict[int, tuple[int, int]] = {}

    def of(self, label: int) -> tuple[int, int]:
        """The root of a label, and its power of the root's factor."""
        power = 1
        while label in self.parent:
            label, sign = self.parent[label]
            power *= sign
        return label, power

    def join(self, a: int, b: int, power: int) -> bool:
        """Ties two; False if a factor would be its own inverse."""
        (one, p), (other, q) = self.of(a), self.of(b)
        if one == other:
            return p * q == power
        self.parent[max(one, other)] = min(one, other), p * q * power
        return True


class _Parts:
    """Who makes and who reads the channels of each factor."""

    def __init__(self, roots: _Roots) -> None:
        self.roots = roots
        self.made: dict[int, list[str]] = {}
        self.read: dict[int, list[str]] = {}

    def makes(self, name: str, labels: Tensor, pinned: dict[int, str]) -> str:
        """Notes a maker; returns why some of its channels are fixed."""
        why = ''
        for label in labels.tolist():
            root, _ = self.roots.of(label)
            if root in pinned:
                why = why or pinned[root]
            else:
                _once(self.made.setdefault(root, []), name)
        return why

    def reads(self, name: str, labels: Tensor) -> None:
        """Notes a reader."""
        for label in labels.unique().tolist():
            root, _ = self.roots.of(label)
            if root in self.made:
                _once(self.read.setdefault(root, []), name)

    def scalings(
        self, found: Constraints, kinds: dict[int, str]
    ) -> list[Scaling]:
        """One for all factors of the same makers and readers."""
        groups: dict[tuple, list[int]] = {}
        for root, makers in self.made.items():
            readers = self.read.get(root, [])
            norm = any(n not in found.reads for n in makers)
            kind = kinds.get(root, 'norm' if norm else 'layer')
            if readers or kind == 'qk':
                key = kind, tuple(makers), tuple(readers)
                groups.setdefault(key, []).append(root)
        return [
            Scaling(
                kind,
                len(roots),
                {n: self._index(found.labels[n], roots) for n in makers},
                {n: self._index(found.reads[n], roots) for n in readers},
                {
                    port: index
                    for port, labels in found.ports.items()
                    if (index := self._index(labels, roots)).any()
                },
            )
            for (kind, makers, readers), roots in groups.items()
        ]

    def _index(self, labels: Tensor, roots: list[int]) -> Tensor:
        at = {root: k for k, root in enumerate(roots, 1)}
        signed = []
        for label in labels.flatten().tolist():
            root, power = self.roots.of(label)
            signed.append(power * at.get(root, 0))
        return torch.tensor(signed).view(labels.shape)


def _once(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)
