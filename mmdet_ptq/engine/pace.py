# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""How long evaluations will take, from the time of one."""

from collections.abc import Sequence

from ..calibration import Session
from ..cost import count_macs
from ..passes.measure_sensitivity import Entry

#: no evaluation is taken to cost less than this share of a whole one
LEAST = 0.1


def shares(
    session: Session, first: Entry, entries: Sequence[Entry]
) -> list[float]:
    """Which share of a whole evaluation each takes, by products.

    An evaluation begins at the first layer that is set otherwise than in
    the one before it.

    Args:
        session (Session): Its graph says in which order layers run.
        first (Entry): What was evaluated before.
        entries (Sequence[Entry]): In the order of their evaluation.

    Returns:
        list[float]: Of each, from :data:`LEAST` to 1.
    """
    macs = count_macs(session.model, session.graph)
    left, after = sum(map(sum, macs.values())), {}
    total = left or 1
    for name in session.graph.layers:
        after[name] = left / total
        left -= sum(macs.get(name, ()))
    found = []
    for before, entry in zip([first, *entries], entries, strict=False):
        changed = [after[n] for n in entry.changes(before)]
        found.append(max([LEAST, *changed]))
    return found


def minutes(seconds: float) -> str:
    """A time in words; seconds below a minute and a half."""
    if seconds < 90:
        return f'{max(1, round(seconds))} s'
    return f'{seconds / 60:.0f} minutes'
