# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What observers were given in a batch, brought to the CPU at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..errors import CalibrationError, NumericError

if TYPE_CHECKING:
    from ..quantizers import BaseQuantizer
    from .base import BaseObserver


class Seen(NamedTuple):
    """What an observer keeps of a tensor until the batch ends.

    Attributes:
        level (int): Pyramid level.
        low (Tensor): ``[K]``, minima of its rows, where it is.
        high (Tensor): ``[K]``, their maxima.
        kept (Any): What else its class wants.
    """

    level: int
    low: Tensor
    high: Tensor
    kept: Any


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the CPU; a GPU is waited for once.

    Args:
        tensors (Sequence[Tensor]): Of one device, floats of any width.

    Returns:
        list[Tensor]: Of their shapes and of the widest dtype among them.
    """
    if not tensors:
        return []
    flat = torch.cat([t.reshape(-1) for t in tensors]).cpu()
    parts = flat.split([t.numel() for t in tensors])
    return [p.view(t.shape) for p, t in zip(parts, tensors, strict=True)]


class Batch:
    """All that some observers have not taken in yet.

    Args:
        observers (Sequence[BaseObserver]): Those of one device; they forget
            what waited.

    Attributes:
        extremes (list[Tensor]): Minima and maxima in turn, to be given to
            :meth:`settle` on the CPU.
    """

    def __init__(self, observers: Sequence[BaseObserver]) -> None:
        self._seen = [(o, seen) for o in observers for seen in o.give()]
        self.extremes = [t for _, s in self._seen for t in (s.low, s.high)]

    def settle(self, extremes: Sequence[Tensor]) -> list[BaseObserver]:
        """Has the observers take the batch in.

        Args:
            extremes (Sequence[Tensor]): As :func:`fetch` gives them.

        Returns:
            list[BaseObserver]: Those that were given NaN or Inf; they have
            taken nothing in.
        """
        if not self._seen:
            return []
        extremes = [t.to(torch.float32) for t in extremes]
        pairs = list(zip(extremes[::2], extremes[1::2], strict=True))
        strange: dict[int, BaseObserver] = {}
        if not _finite(extremes):
            for (one, _), pair in zip(self._seen, pairs, strict=True):
                if not _finite(pair):
                    strange[id(one)] = one
        kinds: dict[type, list[tuple[BaseObserver, int, Any]]] = {}
        told = {}
        for (one, seen), (low, high) in zip(self._seen, pairs, strict=True):
            if id(one) in strange:
                continue
            one.extend(seen.level, low, high)
            told[id(one)] = one
            kept = kinds.setdefault(type(one), [])
            kept.append((one, seen.level, seen.kept))
        for kind, group in kinds.items():
            kind.add_kept(group)
        for one in told.values():
            one.end()
        return list(strange.values())


def _finite(tensors: Sequence[Tensor]) -> bool:
    return bool(torch.isfinite(torch.cat(list(tensors))).all())


def end_batch(observers: Sequence[BaseObserver]) -> list[BaseObserver]:
    """Ends a calibration batch for many observers.

    A GPU is waited for once.

    Args:
        observers (Sequence[BaseObserver]): Those of one device.

    Returns:
        list[BaseObserver]: Those that were given NaN or Inf.
    """
    batch = Batch(observers)
    return batch.settle(fetch(batch.extremes))


def ranges_of(
    pairs: Sequence[tuple[BaseObserver, BaseQuantizer]],
) -> Iterator[tuple[Tensor, Tensor]]:
    """What :meth:`BaseObserver.ranges` gives, for many.

    On a GPU they are searched together, as one search would not keep it
    busy; on a CPU one after the other, as one fits a core's cache.

    Args:
        pairs (Sequence[tuple]): Observers and quantizers.

    Yields:
        tuple[Tensor, Tensor]: Low and high of each.

    Raises:
        CalibrationError: If an observer has seen no data.
        NumericError: If one was given NaN or Inf.
    """
    observers = [one for one, _ in pairs]
    if not all(one.seen for one in observers):
        raise CalibrationError('an observer has seen no data')
    if end_batch(observers):
        raise NumericError('an observed tensor holds NaN or Inf')
    if all(one.device.type == 'cpu' for one in observers):
        for pair in pairs:
            yield from ranges_together([pair])
        return
    found = {}
    for device in {one.device for one in observers}:
        at = [i for i, one in enumerate(observers) if one.device == device]
        some = ranges_together([pairs[i] for i in at])
        found.update(zip(at, some, strict=True))
    yield from (found[i] for i in range(len(pairs)))


def ranges_together(
    pairs: Sequence[tuple[BaseObserver, BaseQuantizer]],
) -> list[tuple[Tensor, Tensor]]:
    """Ranges of observers that have taken their data in, in one search.

    Args:
        pairs (Sequence[tuple]): Observers, of one device, and quantizers.

    Returns:
        list[tuple[Tensor, Tensor]]: Low and high of each, on the CPU.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for kind in {type(one) for one, _ in pairs}:
        at = [i for i, (one, _) in enumerate(pairs) if type(one) is kind]
        some = kind.find_ranges([pairs[i] for i in at])
        found.update(zip(at, some, strict=True))
    flat = fetch([t for i in range(len(pairs)) for t in found[i]])
    out = []
    for (one, _), low, high in zip(pairs, flat[::2], flat[1::2], strict=True):
        low, high = low.clone(), high.clone()
        known = one.known_levels()
        for level in set(range(one.levels)) - set(known):
            low[level] = low[known].amin(0)
            high[level] = high[known].amax(0)
        out.append((low, high))
    return out
