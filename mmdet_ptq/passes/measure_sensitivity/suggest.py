# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Rules that give the worst layers more bits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...quant_cfg.bits import MAX_BITS
from ...registry import QUANTIZERS, find_class
from ...structures import LayerGraph, QuantPlan, QuantSpec
from .ranking import Rank


@dataclass(frozen=True)
class Suggestion:
    """Rules to be added to a ``quant_cfg``.

    Attributes:
        rules (list[dict]): They hold after those that are there.
        layers (list[str]): Whose bits they change.
        words (str): What they do, e.g. ``'keep these 3 layers at 8 bits'``.
    """

    rules: list[dict[str, Any]]
    layers: list[str]
    words: str


def suggestion(
    ranks: Sequence[Rank], graph: LayerGraph, plan: QuantPlan, count: int
) -> Suggestion | None:
    """The widest grid for the weights and inputs of the worst layers.

    Args:
        ranks (Sequence[Rank]): Layers, the worst first.
        graph (LayerGraph): The survey.
        plan (QuantPlan): What is quantized now.
        count (int): How many parts of ``ranks`` at most.

    Returns:
        Suggestion, optional: None if no layer loses anything. A tensor whose
        quantizer has no wider grid is left float.
    """
    said: dict[tuple[str, int | None], list[str]] = {}
    changed: list[str] = []
    for rank in [r for r in ranks if r.score > 0][:count]:
        for name in _with_tied(graph, rank.part.layers):
            for key, bits in _better(plan, name).items():
                said.setdefault((key, bits), []).append(name)
            changed.append(name)
    if not changed:
        return None
    of_names: dict[tuple[str, ...], dict[str, Any]] = {}
    for (key, bits), names in said.items():
        rule = of_names.setdefault(tuple(dict.fromkeys(names)), {})
        rule[key] = None if bits is None else dict(bits=bits)
    rules = [dict(match=list(n), **rule) for n, rule in of_names.items()]
    changed = list(dict.fromkeys(changed))
    widths = {bits for _, bits in said}
    words = ' or '.join(
        'float' if bits is None else f'{bits} bits'
        for bits in sorted(widths, key=lambda bits: bits or 32)
    )
    many = f'these {len(changed)} layers' if len(changed) > 1 else 'this layer'
    at = '' if widths == {None} else 'at '
    return Suggestion(rules, changed, f'keep {many} {at}{words}')


def _better(plan: QuantPlan, name: str) -> dict[str, int | None]:
    """By key of a rule the widest grid, None for float.

    Only if no tensor of the layer has a wider grid they go float.
    """
    one = plan.layers[name]
    found = dict(weight=[one.weight], act=list(one.acts.values()))
    specs = {k: [s for s in v if s is not None] for k, v in found.items()}
    widest = {k: _widest(v) for k, v in specs.items() if v}
    wider = {
        k: bits
        for k, bits in widest.items()
        if bits > min(map(_narrowest, specs[k]))
    }
    return wider or dict.fromkeys(widest)


def _widest(specs: Sequence[QuantSpec]) -> int:
    """The most bits that all of these quantizers have."""
    each = [find_class(QUANTIZERS, spec.type).allowed_bits for spec in specs]
    common = set.intersection(*(set(map(int, bits)) for bits in each))
    return max(b for b in common if b <= MAX_BITS)


def _narrowest(spec: QuantSpec) -> int:
    """The least of its widths; groups of channels have several."""
    return min(spec.args.get('widths') or [spec.bits])


def _with_tied(graph: LayerGraph, names: Sequence[str]) -> list[str]:
    """Layers that have the same weight have to be quantized alike."""
    return list(
        dict.fromkeys(
            other
            for name in names
            for other in (name, *graph.layers[name].tied)
        )
    )


def with_rules(
    given: Mapping[str, Any], suggested: Suggestion
) -> dict[str, Any]:
    """A ``quant_cfg`` with the rules of a suggestion at its end.

    Args:
        given (Mapping): The ``quant_cfg`` as the user wrote it.
        suggested (Suggestion): What is added.
    """
    own = list(given.get('rules') or [])
    return {**given, 'rules': [*own, *suggested.rules]}
