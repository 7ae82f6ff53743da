# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What batch norms have stored, against what a unit gives them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...calibration import Session, UnitView
from ...surgery import FoldedNorm


class NormStatistics:
    """How far a map is from what a batch norm has stored.

    Only the output y of the norm is needed, which a layer that the norm is
    folded into still gives: ``y = gamma (z - mu) / sigma + beta``, so of
    the norm's input z, for each image and channel::

        mean(z) - mu = (mean(y) - beta) sigma / gamma
        var(z) = var(y) (sigma / gamma)^2

    Channels whose gamma is 0 say nothing of z and are left out; so are
    those whose gamma is below 1e-4 of beta, where y is rounded too
    coarsely.

    Args:
        norm (_BatchNorm): With stored statistics.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        self.eps = norm.eps
        # what the norm divides by
        self.sigma = (norm.running_var.detach() + norm.eps).sqrt()
        gamma = torch.ones_like(self.sigma)
        beta = torch.zeros_like(gamma)
        if norm.affine:
            gamma, beta = norm.weight.detach(), norm.bias.detach()
        alive = gamma.abs() > 1e-4 * beta.abs() + 1e-12
        # numbers, not a mask: how many a mask has, a GPU would have to be
        # asked in each step
        self.alive = alive.nonzero().flatten()
        self.beta = beta
        self.factor = (self.sigma / gamma).masked_fill(~alive, 0)

    def __call__(self, output: Tensor) -> Tensor:
        """The error of a map.

        Args:
            output (Tensor): Of the norm, shape (B, C, ...).

        Returns:
            Tensor: ``sum over images and channels of (mean(z) - mu)^2 +
            (sqrt(var(z) + eps) - sigma)^2``, divided by B; 0 for maps of
            less than two positions, which have no variance.
        """
        if output[:1, :1].numel() < 2:
            return output.new_zeros(())
        flat = output.flatten(2)
        var, mean = torch.var_mean(flat, 2)
        off = (mean - self.beta) * self.factor
        spread = (var * self.factor**2 + self.eps).sqrt() - self.sigma
        squares = off.square() + spread.square()
        return squares.index_select(1, self.alive).sum() / len(flat)


def norms_of(
    session: Session, view: UnitView
) -> list[tuple[nn.Module, NormStatistics]]:
    """Batch norms inside a unit, folded or not.

    Args:
        session (Session): Has the folded ones.
        view (UnitView): The unit.

    Returns:
        list[tuple[nn.Module, NormStatistics]]: The module that gives the
        norm's output, and what the norm has stored.
    """
    found = [
        (view.layers[edit.layer], NormStatistics(edit.removed))
        for edit in session.edits
        if isinstance(edit, FoldedNorm) and edit.layer in view.layers
    ]
    return found + [
        (m, NormStatistics(m))
        for m in view.module.modules()
        if isinstance(m, _BatchNorm)
        and m.running_mean is not None
        and not m.training
    ]


@contextmanager
def watching(
    norms: list[tuple[nn.Module, NormStatistics]], errors: list[Tensor]
) -> Iterator[None]:
    """Appends the error of every norm that is run."""

    def hook(statistics: NormStatistics) -> Any:
        # a copy: what follows may work in place
        return lambda module, args, y: errors.append(statistics(y.clone()))

    with ExitStack() as stack:
        for module, statistics in norms:
            handle = module.register_forward_hook(hook(statistics))
            stack.callback(handle.remove)
        yield
