# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Losses on the output of a unit."""

import torch
from torch import Tensor

from ..checks import number, one_of
from ..registry import LOSSES
from .base import OF, GradientWeighted, LocalLoss

FORMS = ('normalized', 'brecq', 'raw')


def channel_sum(t: Tensor) -> tuple[Tensor, int]:
    """Sum over everything, and the number of positions.

    Args:
        t (Tensor): Maps (N, C, H, W), or (..., C).

    Returns:
        tuple[Tensor, int]: Sum over channels and positions, and how many
        positions there are.
    """
    channels = t.shape[1] if t.dim() == 4 else t.shape[-1]
    return t.sum(), t.numel() // max(1, channels)


def mean_over_positions(parts: list[Tensor]) -> Tensor:
    """Mean over all positions of all tensors of the sum over channels.

    A mean over positions does not blow up on large maps, and pyramid levels
    count by their size.
    """
    sums, counts = zip(*(channel_sum(t) for t in parts), strict=True)
    return torch.stack(sums).sum() / max(1, sum(counts))


@LOSSES.register_module()
class L2Loss(LocalLoss):
    """``mean over positions of sum_C |o_q - o|^p``.

    The reconstruction loss of AdaRound, BRECQ (``mse``) and QDrop; BRECQ's
    activations use ``p=2.4``.

    Args:
        p (float): Exponent, at least 1: below, the slope at an error of 0
            is infinite. Defaults to 2.
        weight (float): Factor of the loss. Defaults to 1.

    Raises:
        ValueError: If ``p`` is below 1 or ``weight`` is negative.
    """

    def __init__(self, p: float = 2.0, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.p = number('p', p, 1)

    def __call__(
        self,
        outputs: list[Tensor],
        targets: list[Tensor],
        weights: list[Tensor],
    ) -> Tensor:
        """See :meth:`LocalLoss.__call__`; it has no use for weights."""
        parts = [
            _power(a - b, self.p)
            for a, b in zip(outputs, targets, strict=True)
        ]
        return self.weight * mean_over_positions(parts)


@LOSSES.register_module()
class FisherLoss(GradientWeighted):
    """Squared error weighed by the diagonal of the empirical Fisher matrix.

    ``mean over positions of sum_C w (o_q - o)^2`` (Reg-PTQ, equation 3;
    BRECQ, equation 10), where g is the gradient of ``of`` at the unit's
    output, taken once before the unit is optimised:

    * ``'normalized'``: ``w = g^2 / mean(g^2)`` over the calibration set.
      It has the scale of the plain squared error, so that it can be added
      to a loss on the detector's outputs. ``w = 1`` where g is zero
      everywhere (a head that the loss does not reach).
    * ``'brecq'``: ``w = (|g| + 1)^2``, what BRECQ's code does; g is small,
      so it is nearly the plain squared error.
    * ``'raw'``: ``w = g^2``.

    Args:
        form (str): Of the weights w: ``'normalized'``, ``'brecq'`` or
            ``'raw'``. Defaults to ``'normalized'``.
        damping (float): ``w <- (1 - d) w + d``, from 0 to 1. Defaults
            to 0.
        of (dict): The loss that is differentiated. Defaults to
            ``dict(type='DetectionLoss')``.
        weight (float): Factor of the loss. Defaults to 1.

    Raises:
        ValueError: If an argument is not among the allowed values.
    """

    def __init__(
        self,
        form: str = 'normalized',
        damping: float = 0.0,
        of: dict = OF,
        weight: float = 1.0,
    ) -> None:
        super().__init__(of, weight)
        self.form = one_of('form', form, FORMS)
        self.damping = number('damping', damping, 0, 1)

    def weigh(self, gradient: Tensor, mean_square: float) -> Tensor:
        """See :meth:`GradientWeighted.weigh`."""
        if self.form == 'brecq':
            found = (gradient.abs() + 1) ** 2
        elif self.form == 'raw':
            found = gradient**2
        elif mean_square == 0:
            found = torch.ones_like(gradient)
        else:
            # divided first: the square of a small gradient underflows
            found = (gradient / mean_square**0.5) ** 2
            found = torch.where(gradient.any(), found, 1.0)
        return (1 - self.damping) * found + self.damping

    def __call__(
        self,
        outputs: list[Tensor],
        targets: list[Tensor],
        weights: list[Tensor],
    ) -> Tensor:
        """See :meth:`LocalLoss.__call__`."""
        parts = [
            w * (a - b) ** 2
            for a, b, w in zip(outputs, targets, weights, strict=True)
        ]
        return self.weight * mean_over_positions(parts)


def _power(difference: Tensor, p: float) -> Tensor:
    if p == 2:
        return difference**2
    # autograd of abs gives the slope 0 at 0
    return difference.abs() ** p
