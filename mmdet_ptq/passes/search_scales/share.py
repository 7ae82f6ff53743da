# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What one rank finds, for all ranks."""

from typing import Any

from ...calibration import Session
from ...quantizers import BaseQuantizer
from ...records import SearchRecord, record_of
from .component import Component


def quantizers_of(
    session: Session, part: Component
) -> dict[tuple[str, str], BaseQuantizer]:
    """Those of a component, by layer and tensor."""
    layers = session.layers
    found = {one: layers[one[0]].weight_quantizer for one in part.weights}
    for group in part.groups:
        name, port = group[0]
        found[name, port] = layers[name].act_quantizers[port]
    return found


def packed(
    session: Session,
    part: Component,
    records: list[SearchRecord],
    notes: list[str],
) -> dict[str, Any]:
    """What this rank has found for a component, for all ranks.

    Args:
        session (Session): The running quantization.
        part (Component): What was searched.
        records (list[SearchRecord]): Of it.
        notes (list[str]): Of it.
    """
    return dict(
        states={
            key: {k: t.cpu() for k, t in q.state_dict().items()}
            for key, q in quantizers_of(session, part).items()
        },
        records=[r.to_dict() for r in records],
        notes=notes,
    )


def take(session: Session, part: Component, found: dict[str, Any]) -> None:
    """Takes what :func:`packed` gave, on any rank."""
    for key, quantizer in quantizers_of(session, part).items():
        quantizer.load_state_dict(found['states'][key])
    records = [record_of(r) for r in found['records']]
    session.records += [r for r in records if isinstance(r, SearchRecord)]
    session.notes += found['notes']
