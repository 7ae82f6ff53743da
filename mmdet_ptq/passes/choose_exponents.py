# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""DetPTQ: for each unit the exponent that the detector likes best."""

from collections.abc import Sequence

import numpy as np

from ..calibration import Session
from ..records import RangeRecord
from ..registry import PASSES
from .task_loss import (
    TASK_LOSS,
    TaskLoss,
    TaskPass,
    check_exponents,
    set_exponent,
)


@PASSES.register_module()
class ChooseExponents(TaskPass):
    """The exponent of the Lp search, for each unit the best one (DetPTQ).

    Units are visited in execution order. For each exponent, weights and
    inputs of the unit get the ranges of least Lp error; the exponent stays
    with which the detector, quantized up to and with this unit, has the
    least loss. No code is published: this is the form of the abstract.

    Args:
        exponents (Sequence[float]): Exponents to try.
        images (int): How many calibration images the loss is taken on, of
            each rank. Defaults to 8.
        loss (dict): Loss on the detector's outputs. Defaults to
            ``dict(type='DetectionLoss')``.

    Raises:
        ValueError: If there is no exponent, or one is not above 0.
    """

    def __init__(
        self,
        exponents: Sequence[float] = (1.0, 1.5, 2.0, 2.4, 3.0, 3.5, 4.0),
        images: int = 8,
        loss: dict = TASK_LOSS,
    ) -> None:
        super().__init__(images, loss)
        self.exponents = check_exponents(exponents, 1)

    def choose(self, session: Session, task: TaskLoss) -> None:
        """See :meth:`TaskPass.choose`."""
        quantized: set[str] = set()
        changed: set[str] = set()
        fixed: set[int] = set()
        units = session.graph.units
        layers = session.layers
        for k, unit in enumerate(units):
            session.progress('choose exponents', unit.name, k, len(units))
            quantized |= set(unit.layers)
            losses = []
            for p in self.exponents:
                changed |= set_exponent(session, unit.layers, p, fixed)
                losses.append(task(quantized, changed))
                changed = set()
            best = self.exponents[int(np.argmin(losses))]
            changed = set_exponent(session, unit.layers, best, fixed)
            record = RangeRecord(
                unit.name, best, min(losses), evaluations=len(losses)
            )
            session.records.append(record)
            fixed |= {
                id(q)
                for n in unit.layers
                for q in layers[n].act_quantizers.values()
            }
