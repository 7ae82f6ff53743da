# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What widths may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...calibration import Session
from ...solvers import Resource
from .bops import bops_problem
from .operands import KINDS, NAMES, Operand
from .problems import Picks, WidthProblem

BUDGETS = ('separate', 'joint', 'bytes', 'bops')


@dataclass(frozen=True)
class Budget:
    """What the widths may take.

    Attributes:
        kind (str): One of :data:`BUDGETS`.
        means (Mapping[str, float]): Mean bits of each kind.
        amount (float, optional): Bytes of weights, or bit operations; None:
            what one width takes.
        base (Mapping[str, int]): That width, of each kind.
    """

    kind: str
    means: Mapping[str, float]
    amount: float | None
    base: Mapping[str, int]

    def problems(
        self,
        session: Session,
        operands: Sequence[Operand],
        widths: Sequence[int],
    ) -> list[WidthProblem]:
        """The problems to be solved, each by itself.

        Args:
            session (Session): With graph and plan.
            operands (Sequence[Operand]): What is allocated.
            widths (Sequence[int]): All widths, rising.
        """
        if self.kind == 'bops':
            base, amount = self.base, self.amount
            return [bops_problem(session, operands, widths, base, amount)]
        units = _Units(operands, widths)
        if self.kind == 'joint':
            every = units.of(KINDS)
            sizes = units.sizes[every]
            means = [self.means[units.kinds[i]] for i in every]
            mean = float((sizes * means).sum() / sizes.sum())
            name = ' and '.join(NAMES.values())
            return [units.problem(name, every, mean)]
        found = []
        for kind in KINDS:
            mine = units.of((kind,))
            if not len(mine):
                continue
            if kind == 'weight' and self.kind == 'bytes':
                amount = self.amount
                if amount is None:
                    amount = units.sizes[mine].sum() * self.base[kind] / 8
                found.append(units.problem(NAMES[kind], mine, amount, 'bytes'))
            else:
                found.append(
                    units.problem(NAMES[kind], mine, self.means[kind])
                )
        return found


class _Units:
    """Units of all operands, one after the other."""

    def __init__(
        self, operands: Sequence[Operand], widths: Sequence[int]
    ) -> None:
        self.widths = list(widths)
        self.kinds = [one.kind for one in operands for _ in one.sizes]
        self.sizes = np.array(
            [size for one in operands for size in one.sizes], np.float64
        )

    def of(self, kinds: Sequence[str]) -> list[int]:
        """Units of some kinds."""
        return [i for i, kind in enumerate(self.kinds) if kind in kinds]

    def problem(
        self,
        name: str,
        members: Sequence[int],
        budget: float,
        unit: str = 'mean_bits',
    ) -> WidthProblem:
        """A budget of sizes times bits, each unit by itself."""
        sizes = self.sizes[list(members)]
        make = Resource.bytes if unit == 'bytes' else Resource.mean_bits
        picks: list[list[Picks]] = [
            [((i, k),) for k in range(len(self.widths))] for i in members
        ]
        return WidthProblem(name, make(sizes, self.widths, budget), picks)
