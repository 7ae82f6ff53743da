# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Curves are measured, widths chosen, and the choice is measured."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from ...calibration import Session
from ...errors import NumericError
from .choice import Choice, widths_of
from .curves import Curves, Measuring
from .operands import Operand
from .problems import WidthProblem, cost_of_widths, solved
from .trial_quantizers import Widths

if TYPE_CHECKING:
    from .allocate_bits import AllocateBits


def search(
    asked: AllocateBits,
    session: Session,
    operands: list[Operand],
    problems: list[WidthProblem],
    measuring: Measuring,
) -> tuple[Choice, float | None]:
    """The best choice that was measured, and the distance of one width.

    Args:
        asked (AllocateBits): The pass.
        session (Session): The running quantization.
        operands (list[Operand]): What is allocated.
        problems (list[WidthProblem]): The budgets.
        measuring (Measuring): Takes distances.

    Returns:
        tuple[Choice, float | None]: The distance is None where one width
        for all does not fit the budgets, or gives NaN or Inf.

    Raises:
        NumericError: If no choice gives finite outputs.
    """
    choices: list[Choice] = []
    now: list[Widths] = [[None] * len(one.sizes) for one in operands]
    for k in range(asked.rounds):
        probes = asked.probes if asked.curves == 'probes' else None
        curves = measuring.curves(f'curves {k}', now, probes)
        found: dict[int, int] = {}
        for problem in problems:
            columns_of, in_time = solved(
                problem, curves.added, asked.solver, asked.solver_args
            )
            found |= columns_of
            if not in_time:
                session.warn(
                    f'AllocateBits: {problem.name}: time_limit ended the '
                    'search for widths; there may be better ones, and '
                    'another run may find others; give solver_args a longer '
                    "time_limit, or use solver='dp'"
                )
        columns = [found[unit] for unit in range(len(found))]
        choice = Choice.of(operands, problems, curves, columns, asked.solver)
        distance = measuring.distances(f'choice {k}', choice.widths)
        choices.append(choice.at(distance))
        now = list(choice.widths)
    flat = one_width(operands, problems, choices[0].curves)
    if flat is not None:
        flat = flat.at(measuring.distances('one width', flat.widths))
        choices.append(flat)
    best = min(choices, key=lambda choice: choice.measured)
    if not isfinite(best.measured):
        raise NumericError(
            'AllocateBits: the detector gives NaN or Inf with every choice of '
            'widths; give a greater floor or a smaller scope'
        )
    if flat is None or not isfinite(flat.measured):
        return best, None
    if best is flat:
        session.notes.append(
            'AllocateBits: one width for all stays, as no choice was measured '
            'to be nearer to the float detector'
        )
    return best, flat.measured


def one_width(
    operands: list[Operand], problems: list[WidthProblem], curves: Curves
) -> Choice | None:
    """The widths that were planned, None where they are no choice.

    Args:
        operands (list[Operand]): What is allocated.
        problems (list[WidthProblem]): The budgets.
        curves (Curves): By which its distance is predicted.
    """
    widths = widths_of(operands)
    if any(one.spec.bits not in one.widths for one in operands):
        return None
    columns = [
        widths.index(one.spec.bits) for one in operands for _ in one.sizes
    ]
    if not isfinite(curves.of(columns)):
        return None
    for problem in problems:
        limit = problem.resource.limit / problem.resource.unit
        if cost_of_widths(problem, columns) > limit:
            return None
    return Choice.of(operands, problems, curves, columns, 'one width')
