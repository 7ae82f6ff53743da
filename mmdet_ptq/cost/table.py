# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What the layers of each part cost together."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

#: norms and embeddings; BOPs of scalings and of several scales
OTHER = 'other'
#: what is summed up
SUMS = ('macs', 'bops', 'params')


def part_table(cost: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sums over the layers of each part of a detector.

    Args:
        cost (Mapping): From :func:`mmdet_ptq.cost.cost_of`.

    Returns:
        dict[str, dict[str, Any]]: A row for each part in the order in which
        they run, for :data:`OTHER` what belongs to no layer, and for
        ``'all'`` the sums: ``layers`` (how many), ``bits`` (how many layers
        have which two widths, a ``Counter``), ``macs``, ``bops``,
        ``params``, ``float`` and ``quantized`` (bytes).
    """
    rows: dict[str, dict[str, Any]] = {}
    for one in cost['layers'].values():
        row = rows.setdefault(one['part'], _row())
        row['layers'] += 1
        row['bits'][_pair(one['bits'])] += 1
        for key in SUMS:
            row[key] += one[key]
        for key in ('float', 'quantized'):
            row[key] += one['bytes'][key]
    whole = _row()
    for row in rows.values():
        for key, value in row.items():
            whole[key] += value
    other = _row()
    other['bops'] = cost['bops']['quantized'] - whole['bops']
    for key in ('float', 'quantized'):
        other[key] = cost['bytes'][key] - whole[key]
        whole[key] += other[key]
    other['params'] = int(other['float'] // 4)
    whole['params'] += other['params']
    whole['bops'] += other['bops']
    rows.update({OTHER: other, 'all': whole})
    return rows


def mean_bits(cost: Mapping[str, Any]) -> tuple[float, float]:
    """Bits of a weight and of an input, on average over all of them.

    Weights count once; inputs count in each call, both of a product; what
    is float has 32 bits.

    Args:
        cost (Mapping): From :func:`mmdet_ptq.cost.cost_of`.
    """
    sums, counts = Counter[bool](), Counter[bool]()
    for one in cost['layers'].values():
        for bits, (name, count) in zip(
            one['bits'], one['elements'].items(), strict=True
        ):
            sums[name == 'weight'] += bits * count
            counts[name == 'weight'] += count
    return (
        sums[True] / max(1, counts[True]),
        sums[False] / max(1, counts[False]),
    )


def _row() -> dict[str, Any]:
    sums = dict.fromkeys((*SUMS, 'float', 'quantized'), 0)
    return dict(layers=0, bits=Counter(), **sums)


def _pair(bits: list[float]) -> str:
    if min(bits) > 16:
        return 'float'
    return ' x '.join(f'{b:.3g}' for b in bits)
