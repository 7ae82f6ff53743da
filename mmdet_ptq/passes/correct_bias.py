# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Biases that take the mean error of quantized weights away."""

from typing import ClassVar

import torch

from ..calibration import Session
from ..registry import PASSES
from .base import BasePass


@PASSES.register_module()
class CorrectBias(BasePass):
    """Takes the mean output error of the quantized weights out of biases.

    Of each output channel by ``(Wq - W) E[x]``, with the mean of the layer's
    input over the calibration images (Nagel et al., Data-Free Quantization,
    2019, section 4.2). Layers that are called several times in a forward, as
    heads on pyramid levels are, keep theirs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'means', 'ranges'})
    gives: ClassVar[frozenset[str]] = frozenset({'corrected'})
    refuses: ClassVar[frozenset[str]] = frozenset({'learned'})

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        with session.stage('bias correction'):
            session.stats.means.correct()
