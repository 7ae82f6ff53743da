# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What widths may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...calibration import Session
from ...solvers import Resource
from .bops import bops_problem
from .curves import Floats
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
            return [units.mean_bits(name, every, mean)]
        found = []
        for kind in KINDS:
            mine = units.of((kind,))
            if not len(mine):
                continue
            if kind == 'weight' and self.kind == 'bytes':
                weights = [one for one in operands if one.kind == kind]
                costs = _storage(session, weights, widths)
                amount = self.amount
                if amount is None:
                    bits = self.base[kind]
                    amount = _storage(session, weights, [bits]).sum() / 8
                resource = Resource(
                    'bytes', costs, float(amount), 8.0, units.sizes[mine]
                )
                found.append(units.problem(NAMES[kind], mine, resource))
            else:
                found.append(
                    units.mean_bits(NAMES[kind], mine, self.means[kind])
                )
        return found


def _storage(
    session: Session, weights: Sequence[Operand], widths: Sequence[int]
) -> Floats:
    """Bits ``[U, K]`` that units of weights take, 0 at widths they lack."""
    table = np.zeros((sum(len(one.sizes) for one in weights), len(widths)))
    row = 0
    for one in weights:
        rows = slice(row, row + len(one.sizes))
        for k, bits in enumerate(widths):
            if bits in (*one.widths, one.spec.bits):
                table[rows, k] = one.storage(session.layers, bits)
        row = rows.stop
    return table


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

    def mean_bits(
        self, name: str, members: Sequence[int], budget: float
    ) -> WidthProblem:
        """A budget of bits of an element."""
        sizes = self.sizes[list(members)]
        resource = Resource.mean_bits(sizes, self.widths, budget)
        return self.problem(name, members, resource)

    def problem(
        self, name: str, members: Sequence[int], resource: Resource
    ) -> WidthProblem:
        """Of some units, each by itself."""
        picks: list[list[Picks]] = [
            [((i, k),) for k in range(len(self.widths))] for i in members
        ]
        return WidthProblem(name, resource, picks)
