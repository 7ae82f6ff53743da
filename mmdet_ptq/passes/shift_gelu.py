# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass after which what a GELU gives is nowhere negative."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from ..calibration import Session
from ..errors import QuantConfigError
from ..registry import PASSES
from ..structures import Port
from ..surgery import ScaledInput, can_shift, input_columns
from .base import BasePass
from .scale_inputs import ScaleInputs

#: the least value of x Phi(x), with the other sign
GELU_SHIFT = 0.16997124254703522


@PASSES.register_module()
class ShiftGelu(BasePass):
    """Adds to inputs that come from a GELU what makes them non-negative.

    A layer behind a GELU takes ``x + c`` instead of x, with c = 0.16997, and
    its bias makes up for it: ``bias' = bias - W c`` (bias reparametrization
    of AdaLog, Wu et al., 2024). The float model stays the same.
    Quantizers without negative values, as logarithmic ones are, fit then.
    An affine uniform grid only gets another zero point. The addition is one
    of a constant to what the GELU gives.

    It goes behind ReparametrizeNorm, and not together with ScaleInputs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({'folded'})
    gives: ClassVar[frozenset[str]] = frozenset({'scaled', 'shifted'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'shifted', 'observers', 'ranges', 'learned'}
    )

    def check(self, earlier: Sequence[BasePass]) -> None:
        """See :meth:`BasePass.check`."""
        super().check(earlier)
        if any(isinstance(one, ScaleInputs) for one in earlier):
            raise QuantConfigError(
                'passes: ShiftGelu needs what a GELU gives as it is, and '
                'ScaleInputs scales its channels; leave one of them out '
                '(scale_inputs=False)'
            )

    def prepare(self, session: Session) -> None:
        """See :meth:`BasePass.prepare`."""
        behind = _behind_gelus(session)
        whys = {g[0][0]: why for g in behind if (why := _why_not(session, g))}
        if behind and len(whys) == len(behind):
            name, why = next(iter(whys.items()))
            raise QuantConfigError(
                f'ShiftGelu: none of the {len(behind)} inputs behind a GELU '
                f'can be shifted ({name}: {why}); leave the pass out'
            )

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        behind = _behind_gelus(session)
        if not behind:
            session.warn(
                'ShiftGelu: no quantized input comes from a GELU here, so '
                'nothing was shifted'
            )
            return
        shifted = 0
        for group in behind:
            why = _why_not(session, group)
            if why:
                session.notes.append(
                    f'{group[0][0]}: its input, which comes from a GELU, is '
                    f'not shifted: {why}'
                )
                continue
            shifted += 1
            for name, _ in group:
                weight = session.layers[name].weight
                ones = weight.new_ones(
                    len(input_columns(session.layers[name])),
                    dtype=torch.float64,
                )
                edit = ScaledInput.by(name, ones, -GELU_SHIFT * ones)
                session.edit(edit)
        session.notes.append(
            f'ShiftGelu: {shifted} of {len(behind)} inputs behind a GELU are '
            'nowhere negative'
        )


def _behind_gelus(session: Session) -> list[list[Port]]:
    """Quantized inputs that only a GELU makes."""
    nodes = session.graph.layers
    return [
        group
        for group in session.plan.groups
        if all('gelu' in nodes[n].port_roles[port] for n, port in group)
    ]


def _why_not(session: Session, group: list[Port]) -> str:
    """Why a bias cannot make up for it, '' if it can."""
    for name, port in group:
        layer = session.layers[name]
        if port != 'input':
            return f'{name} multiplies it with another input'
        if layer.tied:
            return f'something else has the weight or bias of {name}'
        if getattr(layer, 'groups', 1) != 1:
            return f'{name} has groups of channels'
        if not can_shift(layer):
            return f'{name} adds zeros to it'
    return ''
