# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass that keeps positional encodings out of quantized features."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from ..calibration import Session
from ..registry import PASSES
from ..surgery import Edit, PositionsSplit, positions_used
from .base import BasePass


@PASSES.register_module()
class SplitPositions(BasePass):
    """Projects features and positional encodings apart in attention.

    MMCV's attention, which DETR and its relatives use, adds encodings to
    what it projects, and one grid of the sum has to cover both. With
    ``W (y + p) = W y + W p`` the features y have a grid of their own, which
    queries, keys and values share, and so have the encodings p. These are
    constants of the detector, or of the size of an image: their layers have
    the role ``@position``, and recipes keep them in 8 bits. The float
    detector stays the same.
    """

    gives: ClassVar[frozenset[str]] = frozenset({'positions'})
    refuses: ClassVar[frozenset[str]] = frozenset({'positions'})
    for_attention: ClassVar[bool] = True

    def restructure(
        self, model: nn.Module, forward: Callable[[], Any]
    ) -> list[Edit]:
        """See :meth:`BasePass.restructure`."""
        return [
            PositionsSplit(name, *given)
            for name, given in positions_used(model, forward).items()
        ]

    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`: says what was done."""
        made = sum(isinstance(e, PositionsSplit) for e in session.edits)
        if not made:
            session.warn(
                'SplitPositions: no attention of MMCV adds positional '
                'encodings here, so nothing was changed: take the recipe gptq '
                'in place of gptq_attention (gptq_codebook in place of '
                'gptq_codebook_attention), or leave this pass out'
            )
            return
        session.notes.append(
            f'SplitPositions: {made} attentions project positional encodings '
            'apart'
        )
