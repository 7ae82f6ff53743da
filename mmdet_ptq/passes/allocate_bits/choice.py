# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""A choice of widths and what it comes to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from .curves import Curves
from .operands import Operand
from .problems import WidthProblem, cost_of_widths


def widths_of(operands: Sequence[Operand]) -> list[int]:
    """All widths that operands may have, rising: the columns of curves."""
    return sorted({w for one in operands for w in one.widths})


@dataclass(frozen=True, eq=False)
class Choice:
    """Widths for all operands.

    Attributes:
        widths (list[list[int]]): Widths of the units of each operand.
        problems (list[WidthProblem]): The budgets.
        spent (list[float]): What is taken of each.
        curves (Curves): Of which it was chosen.
        solver (str): What chose.
        predicted (float): Distance as these add up.
        measured (float): Distance as it was measured; infinite if it was
            not.
    """

    widths: list[list[int]]
    problems: list[WidthProblem]
    spent: list[float]
    curves: Curves
    solver: str
    predicted: float
    measured: float = inf

    @classmethod
    def of(
        cls,
        operands: Sequence[Operand],
        problems: list[WidthProblem],
        curves: Curves,
        columns: list[int],
        solver: str,
    ) -> 'Choice':
        """Adds up what a choice takes and is predicted to do."""
        every = widths_of(operands)
        flat = iter([every[column] for column in columns])
        widths = [[next(flat) for _ in one.sizes] for one in operands]
        spent = [cost_of_widths(problem, columns) for problem in problems]
        return cls(widths, problems, spent, curves, solver, curves.of(columns))

    def at(self, measured: float) -> 'Choice':
        """The same, measured; what is no number counts as infinite."""
        measured = measured if measured == measured else inf
        return replace(self, measured=measured)
