# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Batch norms into the layers that feed them."""

from typing import ClassVar

from ..calibration import Session
from ..registry import PASSES
from ..surgery import FoldedNorm
from .base import BasePass


@PASSES.register_module()
class FoldBatchNorm(BasePass):
    """Folds every batch norm that the graph shows to follow one layer.

    ``W' = W * gamma / sqrt(var + eps)`` for each output channel, and the
    bias accordingly. A norm that several layers feed, or whose layer feeds
    several norms, stays. So does, with a note, one whose layer shares its
    weight or bias with something else, and one where a subclass or a hook
    may compute more than the norm.
    """

    gives: ClassVar[frozenset[str]] = frozenset({'folded'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'equalized', 'observers', 'ranges', 'learned'}
    )

    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        made = [e for e in session.edits if isinstance(e, FoldedNorm)]
        done = {edit.norm for edit in made}
        for norm, layer in session.graph.bn_folds.items():
            if norm not in done:
                session.edit(FoldedNorm(norm, layer))
        for norm, why in session.graph.kept_norms.items():
            session.notes.append(f'{norm}: {why}')
