# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Distances of one image, with each unit at each of its widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...calibration import Prefix, room_for_outputs
from .bench import Bench
from .trial_quantizers import Widths

if TYPE_CHECKING:
    from .curves import Measuring

Targets = list[dict[str, Tensor]]


def by_probes(
    one: Measuring,
    j: int,
    targets: Targets,
    probes: int,
    rng: torch.Generator,
) -> list[Tensor]:
    """Mean squares of ``<v, r>``, to first order in what changes.

    With error e of the outputs as they are, and a change d of them by
    another width, ``E <v, e + d>^2 = |e + d|^2``.

    Args:
        one (Measuring): Its bench says the widths around which units change.
        j (int): Number of the image.
        targets (list[dict]): Constants of the float detector.
        probes (int): How many random directions.
        rng (torch.Generator): Draws these.

    Returns:
        list[Tensor]: float64 ``[units, W]`` of each operand, and ``[1, 1]``:
        with all as they are.
    """
    bench = one.bench
    changed = any(w is not None for slot in bench.slots for w in slot.widths)
    total: list[Tensor] = []
    with torch.enable_grad():
        found = one.distance.residuals(one.run(j), targets)
        for k in range(probes):
            each = [_probe(r, rng) for r in found]
            value = torch.stack(each).sum()
            if value.requires_grad:
                value.backward(retain_graph=k < probes - 1)
            # exactly 0 where nothing differs from the float detector
            error = value.detach().double() * changed
            parts = [(error + slot.collect()).square() for slot in bench.slots]
            parts.append(error.square().reshape(1, 1))
            total = _added(total, parts)
    return [t / probes for t in total]


def _probe(r: Tensor, rng: torch.Generator) -> Tensor:
    v = torch.randn(r.shape, generator=rng, device=r.device, dtype=r.dtype)
    return (r * v).sum()


def _added(total: list[Tensor], parts: list[Tensor]) -> list[Tensor]:
    if not total:
        return parts
    return [a + b for a, b in zip(total, parts, strict=True)]


def by_forwards(
    one: Measuring,
    j: int,
    targets: Targets,
    now: Sequence[Widths],
    room: int,
) -> list[Tensor]:
    """A forward for each unit and width, from the last layers on.

    What comes before a layer is then as it was in the forward before, and is
    not computed again.

    Args:
        one (Measuring): Its bench has all operands at ``now``.
        j (int): Number of the image.
        targets (list[dict]): Constants of the float detector.
        now (Sequence[Widths]): Widths of all operands.
        room (int): Bytes that kept outputs may take.

    Returns:
        list[Tensor]: As of :func:`by_probes`.
    """
    layers, bench = one.session.layers, one.bench
    prefix = Prefix(layers, room_for_outputs(room, one.session.device))
    found: dict[int, Tensor] = {}
    with torch.no_grad(), prefix.watching():

        def distance(changed: set[str]) -> Tensor:
            prefix.change(changed)
            return one.distance(prefix.run(j, lambda: one.run(j)), targets)

        base = distance(set())
        moved: set[str] = set()
        for at in _last_first(bench, list(one.session.graph.layers)):
            trial = bench.slots[at].trial
            names = {name for name, _ in trial.operand.holders}
            rows = []
            for unit in range(trial.units):
                for bits in trial.operand.widths:
                    widths = list(now[at])
                    widths[unit] = bits
                    bench.slots[at].set(widths)
                    rows.append(distance(names | moved))
                    moved = set()
            bench.slots[at].set(now[at])
            moved = names
            found[at] = torch.stack(rows).view(trial.units, -1)
    return [*(found[at] for at in sorted(found)), base.reshape(1, 1)]


def _last_first(bench: Bench, order: list[str]) -> list[int]:
    """Indices of the operands, those of the last layers first."""

    def first(at: int) -> int:
        holders = bench.slots[at].trial.operand.holders
        return min(order.index(name) for name, _ in holders)

    return sorted(range(len(bench.slots)), key=first, reverse=True)
