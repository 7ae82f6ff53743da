# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The pass after which attention computes its softmax in whole numbers."""

import math
from typing import ClassVar

import torch
from mmengine.dist import all_gather_object
from torch import Tensor

from ..calibration import Session, observing
from ..checks import whole
from ..errors import NumericError
from ..layers import OCTAVES, float_mode
from ..registry import PASSES
from ..surgery import WholeSoftmax
from .base import BasePass
from .quantize_numerator import products_of_softmax


@PASSES.register_module()
class IntegerSoftmax(BasePass):
    """Has attentions quantize a softmax of integer logits (FQ-ViT).

    Lin et al. (2022) quantize logits and compute their exponentials by
    shifts and a polynomial in whole numbers. Here the logits of each
    attention are quantized by their largest distance from the maximum of
    their row in the calibration images; what lies more than 30 octaves below,
    as masked logits do, is left out. An octave has a whole number of steps;
    see :func:`mmdet_ptq.layers.integer_softmax`. The
    float detector stays the same.

    Powers of two do not add up to 1, which the paper leaves so and DETR does
    not bear: products are divided by the sums of the quantized rows.

    Args:
        bits (int): Width of the logits, 5 to 16: with fewer a step may be
            more than an octave. Defaults to 8.
        sums (bool): Whether products are divided by the sums of the
            quantized rows. False is the paper's form. Defaults to True.

    Raises:
        ValueError: If ``bits`` is something else.
    """

    gives: ClassVar[frozenset[str]] = frozenset({'whole'})
    refuses: ClassVar[frozenset[str]] = frozenset(
        {'whole', 'numerators', 'ranges', 'learned'}
    )

    def __init__(self, bits: int = 8, sums: bool = True) -> None:
        self.bits = whole('bits', bits, 5)
        self.sums = sums
        if bits > 16:
            raise ValueError(f'bits must be from 5 to 16, got {bits}')

    @torch.no_grad()
    def run(self, session: Session) -> None:
        """See :meth:`BasePass.run`."""
        found = products_of_softmax(session)
        if not found:
            session.warn(
                'IntegerSoftmax: no quantized product has a softmax as its '
                'first operand here, so nothing was changed'
            )
            return
        reach = _reach(session, found)
        for name, most in reach.items():
            step = most / (2**self.bits - 1)
            steps = max(1, int(math.log(2) / step))
            session.edit(WholeSoftmax(name, steps, self.sums))
        session.notes.append(
            f'IntegerSoftmax: {len(reach)} products take a softmax of '
            f'{self.bits}-bit logits'
        )


def _reach(session: Session, products: list[str]) -> dict[str, float]:
    """How far logits lie below the largest of their row, of all ranks.

    An octave at least, for softmaxes that never were far from uniform.
    Entries further below than an exponential of whole numbers reaches are
    next to nothing after it, whatever the step is, and do not count.

    Raises:
        NumericError: If a softmax gives NaN.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in products}

    def see(name: str, port: str, level: int, x: Tensor) -> None:
        if port == 'a' and x.numel():
            top = x.amax(-1, keepdim=True)
            # what is masked, by -inf or by -100, is no logit
            least = torch.where(x > top / 2**OCTAVES, x, top).amin(-1)
            seen[name].append((top[..., 0].log() - least.log()).amax())

    layers = {name: session.layers[name] for name in products}
    with (
        session.stage('logits'),
        observing(layers, inputs=see),
        float_mode(session.model),
    ):
        session.feed.predict()
    mine = {
        name: float(torch.stack(some).amax()) if some else 0.0
        for name, some in seen.items()
    }
    parts = all_gather_object(mine)
    for name in products:
        if any(math.isnan(part[name]) for part in parts):
            raise NumericError(
                f'{name}: NaN in its a, the softmax, during '
                'calibration; the float model overflows on an image'
            )
    most = {name: max(part[name] for part in parts) for name in products}
    return {n: max(x, math.log(2)) for n, x in most.items()}
