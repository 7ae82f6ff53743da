# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Statistics of groups of the channels of inputs.

Observers know nothing of bits, but they do know rows. Groups have ranges of
their own, for which the images are run once more.
"""

from collections.abc import Sequence
from typing import Any

from mmengine.dist import all_gather_object

from ...calibration import Session
from ..base import BasePass
from ..observe import Observe
from .operands import Operand


def observe_groups(
    session: Session, operands: Sequence[Operand], before: BasePass
) -> None:
    """Gives inputs quantizers with groups, and these their statistics.

    Args:
        session (Session): With statistics of whole tensors, or the state of
            a run that was stopped.
        operands (Sequence[Operand]): What is to be allocated.
        before (BasePass): The running pass; the ``Observe`` before it is run
            again, if any input is parted at all.
    """
    grouped = grouped_inputs(operands)
    for one in grouped:
        spec = one.spec_of([one.spec.bits] * len(one.sizes))
        session.replace_group(one.holders, spec)
    if not grouped:
        return
    # a kill may have come between the saves of two ranks
    if all(all_gather_object('measured' in session.state)):
        session.stats.load_state_dict(
            session.state['stats'], session.layers, session.device
        )
        return
    passes = session.config.built_passes
    kinds = [type(one) for one in passes]
    earlier = passes[: kinds.index(type(before))]
    [one for one in earlier if isinstance(one, Observe)][-1].run(session)


def grouped_inputs(operands: Sequence[Operand]) -> list[Operand]:
    """Inputs that are parted in groups of channels."""
    return [one for one in operands if one.kind == 'input' and one.channels]


def export(session: Session, operands: Sequence[Operand]) -> dict[str, Any]:
    """What a run that is stopped goes on from.

    Args:
        session (Session): With what was measured in its ``state``.
        operands (Sequence[Operand]): What is to be allocated.

    Returns:
        dict[str, Any]: What was measured, and the statistics of groups.
    """
    found: dict[str, Any] = dict(measured=dict(session.state['measured']))
    if grouped_inputs(operands):
        found['stats'] = session.stats.state_dict()
    return found
