# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What makes one candidate better than another."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ...checks import number

if TYPE_CHECKING:
    from .terms import Term

#: pairs of outputs of a position whose order is looked at
PAIRS = 64
#: by how much of their deviation outputs have to be apart
MARGIN = 0.2


class Objective(ABC):
    """A loss on what quantizers do to an output; less is better.

    Attributes:
        of_outputs (bool): Whether outputs are looked at, or the quantized
            tensors themselves.
        squares (bool): Whether it is the sum of squared errors, so that any
            rotation of the outputs serves as well.
        weighted (bool): Whether errors are weighed by gradients.
    """

    of_outputs: bool = True
    squares: bool = False
    weighted: bool = False

    @abstractmethod
    def __call__(self, off: Tensor, term: 'Term') -> Tensor:
        """Losses of candidates.

        Args:
            off (Tensor): ``[B, C, U, M]``, how far outputs are off with
                each of C candidates; may be overwritten.
            term (Term): Of these outputs.

        Returns:
            Tensor: ``[B, C]``, none below 0; they are added over blocks.
        """


class Squares(Objective):
    """Sum of squared errors.

    Args:
        of_outputs (bool): Of the outputs; else of the tensors themselves.
        weighted (bool): Whether errors of outputs are multiplied by the
            gradients there.
    """

    def __init__(self, of_outputs: bool = True, weighted: bool = False):
        self.of_outputs = of_outputs
        self.weighted = weighted
        self.squares = not weighted

    def __call__(self, off: Tensor, term: 'Term') -> Tensor:
        """See :meth:`Objective.__call__`."""
        if term.weight is not None:
            off = off.mul_(term.weight[:, None])
        return off.square_().sum((-1, -2))


class Pearson(Objective):
    """One minus the correlation of float and quantized outputs.

    Of each image, or of each matrix of a product (Liu et al., Post-Training
    Quantization for Vision Transformer, 2021); a weight with a grid for each
    output channel has a correlation of each channel. What a softmax reads
    also has to keep its order: where two outputs i and j of a position, out
    of 64 pairs, come nearer than a margin or change sides,
    ``max(0, margin - (y^_i - y^_j) sign(y_i - y_j))`` is added, in units of
    the deviation of the float outputs; the margin is 0.2 of these.

    Args:
        ranking (float): Factor of the mean of that over pairs and positions;
            the paper gives none.
    """

    def __init__(self, ranking: float = 0.1) -> None:
        self.ranking = number('ranking', ranking)

    def __call__(self, off: Tensor, term: 'Term') -> Tensor:
        """See :meth:`Objective.__call__`."""
        exact = term.exact
        if term.across:  # positions come first
            off, exact = off.mT, exact.mT
        loss = _uncorrelated(off, exact, term.image)
        if term.ranked and self.ranking:
            ours = off.add_(exact[:, None])
            loss = loss + self.ranking * _misordered(ours, exact)
        return loss


def _uncorrelated(off: Tensor, exact: Tensor, image: Tensor | None) -> Tensor:
    """Sum over images of one minus the correlation.

    With y the float outputs around their mean, x the quantized ones and d
    what these are off, all of an image, it is ``(|d|^2 - (|x| - |y|)^2) / (2
    |x| |y|)``. All of it is small where d is, so single precision will do.

    Args:
        off (Tensor): ``[B, C, T, M]``, d of T positions.
        exact (Tensor): ``[B, T, M]``.
        image (Tensor, optional): int64 ``[T]``; None is all one image.

    Returns:
        Tensor: float64 ``[B, C]``.
    """
    if image is None:
        image = torch.zeros(off.shape[2], dtype=torch.int64)
    share = functional.one_hot(image.to(off.device)).to(off)
    share /= share.sum(0).clamp(min=1)

    def mean(t: Tensor) -> Tensor:
        """Of each image, over its positions."""
        return t.mean(-1) @ share

    middle = mean(exact)
    y = exact - middle[..., image, None]
    power_y = mean(y.square()).double()
    power_d = (mean(off.square()) - mean(off).square()).double().clamp(min=0)
    gained = 2 * mean(off * y[:, None]).double() + power_d
    power_x = (power_y[:, None] + gained).clamp(min=0)
    size_x, size_y = power_x.sqrt(), power_y.sqrt()[:, None]
    longer = gained / (size_x + size_y).clamp(min=1e-300)
    size = (2 * size_x * size_y).clamp(min=1e-300)
    lost = (power_d - longer.square()) / size
    lost = torch.where(size_x > 0, lost.clamp(0, 2), 1.0)
    # outputs that do not change have no correlation to keep
    return torch.where(size_y > 0, lost, 0.0).sum(-1)


def _misordered(ours: Tensor, exact: Tensor) -> Tensor:
    """Mean hinge over pairs and positions, ``[B, C]``."""
    count = exact.shape[-1]
    if count < 2:
        return ours.new_zeros(ours.shape[:2], dtype=torch.float64)
    rng = torch.Generator().manual_seed(count)
    one = torch.randint(count, (PAIRS,), generator=rng)
    more = torch.randint(1, count, (PAIRS,), generator=rng)
    pair = torch.stack([one, (one + more) % count]).to(exact.device)
    scale = exact.std(-1, keepdim=True).clamp(min=1e-12)
    side = (exact[..., pair[0]] - exact[..., pair[1]]).sign()
    apart = (ours[..., pair[0]] - ours[..., pair[1]]) * side[:, None]
    hinge = (MARGIN - apart / scale[:, None]).clamp(min=0)
    return hinge.mean((-1, -2)).double()
