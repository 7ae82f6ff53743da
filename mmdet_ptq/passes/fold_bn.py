# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batch norms into the layers that feed them."""

from ..calibration import Session
from ..registry import PASSES
from ..surgery import fold_batch_norms


@PASSES.register_module()
class FoldBatchNorm:
    """Folds every batch norm that the graph shows to follow one layer.

    ``W' = W * gamma / sqrt(var + eps)`` for each output channel, and the
    bias accordingly. A norm that several layers feed, or whose layer feeds
    several norms, stays.
    """

    structural = True

    def run(self, session: Session) -> None:
        """Changes the model in place and notes the folds and norms."""
        folds = {
            norm: layer
            for norm, layer in session.graph.bn_folds.items()
            if norm not in session.folds
        }
        session.norms.update(
            {norm: session.model.get_submodule(norm) for norm in folds}
        )
        fold_batch_norms(session.model, folds)
        session.folds.update(folds)
