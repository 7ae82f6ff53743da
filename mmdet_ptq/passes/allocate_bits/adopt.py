# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Chosen widths into the plan, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from mmengine.logging import print_log

from ...calibration import Session
from ...records import AllocationRecord, BudgetRecord, Record
from .choice import Choice, widths_of
from .operands import Operand

if TYPE_CHECKING:
    from .allocate_bits import AllocateBits


def adopt(
    session: Session, operands: Sequence[Operand], choice: Choice
) -> None:
    """Replaces quantizers by those of the chosen widths.

    Args:
        session (Session): The running quantization.
        operands (Sequence[Operand]): What was allocated.
        choice (Choice): Their widths.
    """
    plan = session.plan.layers
    for one, widths in zip(operands, choice.widths, strict=True):
        spec = one.spec_of(widths)
        name, tensor = one.holders[0]
        if one.kind == 'weight':
            if spec != plan[name].weight:
                session.replace(name, tensor, spec)
        elif spec != plan[name].acts[tensor]:
            session.replace_group(one.holders, spec)


def records(
    asked: AllocateBits,
    operands: Sequence[Operand],
    choice: Choice,
    uniform: float | None,
) -> list[Record]:
    """One for each budget and each unit.

    Args:
        asked (AllocateBits): The pass.
        operands (Sequence[Operand]): What was allocated.
        choice (Choice): What was chosen.
        uniform (float, optional): Distance of one width for all.
    """
    every = widths_of(operands)
    flat = [w for widths in choice.widths for w in widths]
    found: list[Record] = []
    for problem, spent in zip(choice.problems, choice.spent, strict=True):
        bits = [flat[unit] for unit in _members(problem.picks)]
        found.append(
            BudgetRecord(
                problem.name,
                problem.resource.name,
                problem.resource.budget,
                spent,
                min(bits),
                max(bits),
                choice.solver,
                asked.objective,
                choice.predicted,
                choice.measured,
                uniform,
            )
        )
    row = 0
    for one, widths in zip(operands, choice.widths, strict=True):
        for group, (size, bits) in enumerate(
            zip(one.sizes, widths, strict=True)
        ):
            curve = choice.curves.added[
                row, [every.index(w) for w in one.widths]
            ]
            found.append(
                AllocationRecord(
                    one.holders[0][0],
                    one.holders[0][1],
                    [name for name, _ in one.holders],
                    group if one.channels else None,
                    size,
                    bits,
                    list(one.widths),
                    [float(c) if np.isfinite(c) else None for c in curve],
                )
            )
            row += 1
    return found


def _members(picks: Sequence) -> list[int]:
    """Units that a budget decides on."""
    return [unit for options in picks for unit, _ in options[0]]


def line(session: Session, choice: Choice, uniform: float | None) -> None:
    """Says in one line of the log and the notes what was chosen."""
    flat = [w for widths in choice.widths for w in widths]
    said = []
    for problem, spent in zip(choice.problems, choice.spent, strict=True):
        bits = [flat[unit] for unit in _members(problem.picks)]
        budget, kind = problem.resource.budget, problem.resource.name
        if kind == 'mean bits':
            amount = f'{spent:.4g} of {budget:.4g} on average'
        else:
            amount = f'{spent:.6g} of {budget:.6g} {kind}'
        said.append(
            f'{problem.name} {amount}, from {min(bits)} to {max(bits)}'
        )
    end = f'distance {choice.measured:.3g} (predicted {choice.predicted:.3g}'
    end += f'; {uniform:.3g} with one width)' if uniform is not None else ')'
    text = f'bits: {"; ".join(said)}; {end}'
    session.notes.append(text)
    print_log(text, 'current')
