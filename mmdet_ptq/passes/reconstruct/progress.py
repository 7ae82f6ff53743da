# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Which units are done, kept for a run that was stopped."""

from typing import Any

from mmengine.dist import all_gather_object, broadcast_object_list

from ...calibration import Session
from ...layers import named_tensors, restore_tensors
from ...records import record_of


def export(session: Session) -> dict[str, Any]:
    """What the units done so far have changed.

    Args:
        session (Session): The running quantization.

    Returns:
        dict[str, Any]: Tensors and plain types, for :func:`resume`.
    """
    return dict(
        units=session.state.get('units', 0),
        tensors={
            n: t.clone() for n, t in named_tensors(session.model).items()
        },
        records=[r.to_dict() for r in session.records],
        notes=list(session.notes),
    )


def resume(session: Session) -> int:
    """Puts back what an earlier run has done, on all ranks the same.

    Args:
        session (Session): With ``state`` as :func:`export` made it.

    Returns:
        int: Number of units that are done.
    """
    done = session.state.get('units', 0)
    ranks = all_gather_object(done)
    if len(set(ranks)) > 1:
        # a kill came between the saves of two ranks; after a unit all
        # hold the same, so those behind go on from what the first has
        first = [session.state]
        broadcast_object_list(first, src=ranks.index(max(ranks)))
        session.state.update(first[0])
        done = max(ranks)
    if done:
        restore_tensors(session.model, session.state.pop('tensors'))
        session.records[:] = map(record_of, session.state.pop('records'))
        session.notes[:] = session.state.pop('notes')
    return done
