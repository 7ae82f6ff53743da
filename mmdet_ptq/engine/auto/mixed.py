# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A width for each layer within a budget, from what layers lose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ...calibration import Session
from ...cost import count_macs
from ...passes.measure_sensitivity import find_parts
from ...solvers import Problem, Resource, solve
from .goal import Rules

Facts = Mapping[str, Any]
"""Of a detector of one uniform width: :func:`facts_of`"""
#: of operands that stay float
FLOAT = 32


def facts_of(session: Session) -> dict[str, Any]:
    """What is known of the layers of a detector at one width.

    Args:
        session (Session): Its plan stands.

    Returns:
        dict[str, Any]: Plain types. ``parts``: layers by name of a part;
        ``layers``: of each, ``weight`` and ``acts`` (bits; of what is float
        None), ``macs`` of all calls and ``size`` (elements of the weight).
    """
    parts = find_parts(session.graph, session.plan)
    macs = count_macs(session.model, session.graph)
    layers = {}
    for name, plan in session.plan.layers.items():
        twin = session.layers[name]
        has_weight = twin.weight_axis is not None
        layers[name] = dict(
            weight=plan.weight.bits if plan.weight else None,
            has_weight=has_weight,
            acts=[one.bits if one else None for one in plan.acts.values()],
            macs=sum(macs.get(name, ())),
            size=twin.weight.numel() if has_weight else 0,
        )
    return dict(
        parts={p.name: list(p.layers) for p in parts if not p.is_role},
        layers=layers,
    )


@dataclass(frozen=True)
class Option:
    """Widths of a part: those of the wide detector, or of the narrow one.

    Attributes:
        weight (bool): Whether weights are wide.
        act (bool): Whether inputs are.
    """

    weight: bool
    act: bool


#: the narrow one first: of equals it is taken
OPTIONS = tuple(Option(w, a) for w in (False, True) for a in (False, True))


@dataclass(frozen=True)
class Mix:
    """Widths between those of two uniform detectors.

    Attributes:
        wide (Mapping): From :func:`facts_of`.
        narrow (Mapping): The same of the narrow one.
        wide_scores (Mapping): What parts lose alone, by key of an entry.
        narrow_scores (Mapping): The same of the narrow one.
    """

    wide: Facts
    narrow: Facts
    wide_scores: Mapping[str, float]
    narrow_scores: Mapping[str, float]

    def rules(self, kind: str, budget: float, cost_of_narrow: float) -> Rules:
        """Rules that widen some layers of the narrow detector.

        Args:
            kind (str): ``'bits'``: of parameters, or ``'bops'``.
            budget (float): Of the whole detector.
            cost_of_narrow (float): Of the narrow one as it was counted;
                what is in it beside the layers stays.

        Returns:
            list[dict]: Empty if no layer can be widened: none is quantized,
            or the budget leaves no room above what the narrow one takes.
        """
        parts = list(self.narrow['parts'])
        costs = np.array(
            [[self._cost(p, o, kind) for o in OPTIONS] for p in parts]
        )
        if not costs.size or budget < cost_of_narrow:
            return []
        rest = cost_of_narrow - costs[:, 0].sum()
        losses = np.array([[self._loss(p, o) for o in OPTIONS] for p in parts])
        problem = Problem(losses, (Resource(kind, costs, budget - rest),))
        choice = solve(problem).choice
        chosen = [OPTIONS[i] for i in choice]
        return self._written(parts, chosen)

    def _of(self, wide: bool) -> Facts:
        return self.wide if wide else self.narrow

    def _cost(self, part: str, option: Option, kind: str) -> float:
        total = 0.0
        for name in self.narrow['parts'][part]:
            layer = self.narrow['layers'][name]
            weight = self._of(option.weight)['layers'][name]['weight']
            bits = [_bits(weight)] if layer['has_weight'] else []
            if kind == 'bits':
                total += layer['size'] * sum(bits)
            else:
                operands = [*bits, *map(_bits, self._acts(name, option.act))]
                total += layer['macs'] * prod(operands[-2:])
        return total

    def _acts(self, name: str, wide: bool) -> list[int | None]:
        """Bits of the inputs of a layer; those of one with a float input stay.

        A rule on its inputs would quantize the float one.
        """
        found: list[int | None] = self._of(wide)['layers'][name]['acts']
        return self.narrow['layers'][name]['acts'] if None in found else found

    def _loss(self, part: str, option: Option) -> float:
        found = 0.0
        for tensor, wide in (('weight', option.weight), ('act', option.act)):
            scores = self.wide_scores if wide else self.narrow_scores
            found += max(0.0, scores.get(f'alone/{tensor}/{part}', 0.0))
        return found

    def _written(
        self, parts: Sequence[str], chosen: Sequence[Option]
    ) -> Rules:
        said: dict[tuple[str, int], list[str]] = {}
        for part, option in zip(parts, chosen, strict=True):
            for name in self.narrow['parts'][part]:
                now, then = (
                    one['layers'][name]['weight']
                    for one in (self.narrow, self.wide)
                )
                if option.weight and now != then:
                    said.setdefault(('weight', then), []).append(name)
                acts = self._acts(name, True)
                if option.act and acts != self._acts(name, False):
                    bits = max(filter(None, acts))
                    said.setdefault(('act', bits), []).append(name)
        return [
            {'match': names, key: dict(bits=bits)}
            for (key, bits), names in said.items()
        ]


def _bits(bits: int | None) -> int:
    return FLOAT if bits is None else bits
