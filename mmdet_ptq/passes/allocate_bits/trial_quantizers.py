# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Quantizers of every width, with ranges, of what is to be allocated."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...calibration import Session
from ...errors import CalibrationError
from ...observers import ranges_of, set_range
from ...quantizers import BaseQuantizer, FitsTensor
from ..set_ranges import SetRanges
from .operands import Operand

Widths = Sequence[int | None]
"""Bits of each unit of an operand; None leaves it float."""


@dataclass(frozen=True)
class TrialQuantizers:
    """An operand, and its quantizers.

    Attributes:
        operand (Operand): What it is.
        quantizers (dict[int, BaseQuantizer]): By width, each with a range.
        axis (int): Axis of its channels.
    """

    operand: Operand
    quantizers: dict[int, BaseQuantizer]
    axis: int

    @property
    def units(self) -> int:
        """How many units it has."""
        return len(self.operand.sizes)

    def at(self, x: Tensor, widths: Widths, level: int = 0) -> Tensor:
        """The tensor with its units at some widths.

        Args:
            x (Tensor): The float tensor.
            widths (Sequence): Of each unit.
            level (int): Pyramid level.

        Returns:
            Tensor: Of its shape; ``x`` itself where all are float.
        """
        versions = {
            w: x if w is None else self.quantizers[w](x, level)
            for w in dict.fromkeys(widths)
        }
        if len(versions) == 1:
            return next(iter(versions.values()))
        size = self.operand.channels
        assert size is not None
        pieces = [
            versions[w].split(size, self.axis)[i] for i, w in enumerate(widths)
        ]
        return torch.cat(pieces, self.axis)

    def sums(self, t: Tensor) -> Tensor:
        """Sums over the elements of each unit, float64 ``[units]``."""
        if self.units == 1:
            return t.sum().double()[None]
        size = self.operand.channels
        assert size is not None
        rows = t.movedim(self.axis, 0).flatten(1).sum(1).double()
        return torch.stack([part.sum() for part in rows.split(size)])


@torch.no_grad()
def make_trial_quantizers(
    session: Session, operands: Sequence[Operand]
) -> list[TrialQuantizers]:
    """Quantizers of all widths, ranged as ``SetRanges`` of the recipe does.

    No forward is run: weights are there, and the observers of inputs have
    seen what they have to.

    Args:
        session (Session): With statistics of the inputs.
        operands (Sequence[Operand]): What is to be allocated.

    Returns:
        list[TrialQuantizers]: One for each.

    Raises:
        CalibrationError: If there are no statistics of an input.
    """
    layers, device = session.layers, session.device
    setting = next(
        (p for p in session.config.built_passes if isinstance(p, SetRanges)),
        SetRanges(),
    )
    found, pairs = [], []
    for i, one in enumerate(operands):
        session.progress('trial ranges', one.name, i, len(operands))
        trial = TrialQuantizers(
            one,
            {b: one.build(layers, b).to(device) for b in one.widths},
            one.axis(layers),
        )
        found.append(trial)
        if one.kind == 'weight':
            weight = layers[one.holders[0][0]].weight.detach()
            for quantizer in trial.quantizers.values():
                _range_weight(setting, weight, quantizer)
            continue
        for quantizer in trial.quantizers.values():
            observer = session.stats.of_rows(one.holders[0], quantizer)
            if observer is None:
                raise CalibrationError(
                    f'AllocateBits: {one.name}: there are no statistics for '
                    'its quantizer; put Observe after the pass that replaced '
                    'it, and AllocateBits after Observe'
                )
            pairs.append((observer, quantizer))
    for (observer, quantizer), ends in zip(
        pairs, ranges_of(pairs), strict=True
    ):
        set_range(quantizer, observer, *ends)
    return found


def _range_weight(
    setting: SetRanges, weight: Tensor, quantizer: BaseQuantizer
) -> None:
    if isinstance(quantizer, FitsTensor):
        quantizer.fit(weight)
    else:
        quantizer.set_range(*setting.weight_range(weight, quantizer))
