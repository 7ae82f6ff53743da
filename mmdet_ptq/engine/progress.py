# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What finished passes did, in a form that a later run goes on from."""

import logging
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.logging import print_log

from ..calibration import ResumeStore, Session
from ..layers import named_tensors, restore_tensors
from ..plan import attach, plan_of, plan_to_dict
from ..records import record_of
from ..surgery import edits_of


def snapshot(session: Session) -> dict[str, Any]:
    """Everything that passes change, as tensors and plain types.

    Args:
        session (Session): Between two passes.

    Returns:
        dict[str, Any]: For :func:`restore`.
    """
    return dict(
        # on a CPU these share memory with the model
        tensors={
            n: t.clone() for n, t in named_tensors(session.model).items()
        },
        plan=plan_to_dict(session.plan),
        edits=[edit.to_dict() for edit in session.edits],
        stats=session.stats.state_dict(),
        notes=list(session.notes),
        records=[record.to_dict() for record in session.records],
    )


def without_twice(
    finished: dict[str, Any] | None, state: dict[str, Any]
) -> dict[str, Any] | None:
    """A snapshot without the tensors that the running pass keeps itself.

    Args:
        finished (dict, optional): From :func:`snapshot`, before the pass.
        state (dict): Of the pass; ``tensors`` of the whole model, if it
            keeps them, take the place of the snapshot's.
    """
    if finished is None or 'tensors' not in state:
        return finished
    return {k: v for k, v in finished.items() if k != 'tensors'}


def restore(
    session: Session, found: dict[str, Any], state: dict[str, Any]
) -> None:
    """Puts back what finished passes did; they may have replanned.

    Args:
        session (Session): Before the first pass.
        found (dict): From :func:`snapshot` or :func:`without_twice`.
        state (dict): Of the pass that was stopped.
    """
    for edit in edits_of(found['edits'])[len(session.edits) :]:
        edit.rebuild(session.model)
        session.edits.append(edit)
    session.plan = plan_of(found['plan'])
    session.notes[:] = found['notes']
    session.records[:] = map(record_of, found['records'])
    graph = session.graph
    attach(session.model, session.plan, graph.levels, graph.heads)
    tensors = found['tensors'] if 'tensors' in found else state['tensors']
    restore_tensors(session.model, tensors)
    session.stats.load_state_dict(
        found['stats'], session.layers, session.device
    )


def saved_progress(store: ResumeStore | None, resume: bool) -> dict:
    """What the store holds of this run, the same passes on every rank.

    Args:
        store (ResumeStore, optional): Where progress is kept.
        resume (bool): Whether to go on at all.

    Returns:
        dict: Empty if there is nothing to go on from.
    """
    if not resume or store is None:
        return {}
    saved = store.load()
    at = all_gather_object(saved['done'] if saved else None)
    if saved is None or len(set(at)) > 1:
        print_log(
            'nothing to resume of this checkpoint and configuration: '
            'starting from the beginning',
            'current',
            logging.WARNING,
        )
        return {}
    return saved
