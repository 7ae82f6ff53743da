# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How often layers are called, and from where the calls are counted."""

from .walk import Walker


def find_levels(walker: Walker) -> tuple[dict[str, int], tuple[str, ...]]:
    """Calls of each layer in one forward of the detector or of its head.

    A child of the detector is a head if each of its calls makes all calls
    of its layers for all pyramid levels. Then the calls are counted anew in
    each of its own, whoever makes it. A child that is called for each level
    itself is none.

    Args:
        walker (Walker): The trace.

    Returns:
        tuple[dict[str, int], tuple[str, ...]]: Calls by layer, and the
        heads.
    """
    levels = {name: len(calls) for name, calls in walker.calls.items()}
    heads = []
    for part in dict.fromkeys(name.partition('.')[0] for name in levels):
        rounds = {
            name: _rounds(walker, part, name)
            for name, calls in levels.items()
            if calls > 1 and name.startswith(f'{part}.')
        }
        whole = all(
            sum(found) == levels[name] and len(set(found)) == 1
            for name, found in rounds.items()
        )
        if whole and any(found[0] > 1 for found in rounds.values()):
            heads.append(part)
            levels.update({name: r[0] for name, r in rounds.items()})
    return levels, tuple(heads)


def _rounds(walker: Walker, part: str, layer: str) -> list[int]:
    """Calls of a layer in each call of a part that makes any."""
    indices = [op.index for op in walker.calls[layer]]
    found = [
        sum(span.start <= i < span.stop for i in indices)
        for span in walker.record.spans
        if span.name == part
    ]
    return [count for count in found if count]
