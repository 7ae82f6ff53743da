# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Outputs in few directions, for a cheap first look at candidates."""

from dataclasses import dataclass

import torch
from torch import Tensor

#: directions that are kept, of so many; fewer outputs are looked at whole
ONE_IN, LEAST = 8, 128
#: how often a power iteration goes there and back
ITERATIONS = 2


@dataclass(frozen=True)
class Narrow:
    """The directions of an output that hold most of what its factor does.

    With orthonormal directions V, ``|e F + p|²`` is about ``|e F V + p V|² +
    t |e|²``: what lies across them is as if each element of the error had
    the same share t in it. What p has there is left out.

    Attributes:
        basis (Tensor): V, ``[G, M, k]``.
        factor (Tensor): F V, ``[G, N, k]``.
        tail (Tensor): t, ``[G]``.
    """

    basis: Tensor
    factor: Tensor
    tail: Tensor

    def turned(self, offset: Tensor) -> Tensor:
        """``p V``, ``[B, U, k]`` of ``[B, U, M]``; B is a multiple of G."""
        return _times(offset, self.basis)

    def loss(self, error: Tensor, columns: slice, turned: Tensor) -> Tensor:
        """About the squared error of the output.

        Args:
            error (Tensor): e in some columns, ``[B, C, U, n]``.
            columns (slice): Which n columns.
            turned (Tensor): p V, ``[B, U, k]``.

        Returns:
            Tensor: float64 ``[B, C]``.
        """
        off = _times(error, self.factor[:, columns]).add_(turned[:, None])
        tail = self.tail.repeat_interleave(len(error) // len(self.tail))
        across = error.square().sum((-1, -2)).double()
        return off.square_().sum((-1, -2)).double() + tail[:, None] * across


def narrow(factor: Tensor) -> Narrow:
    """Finds the strongest eighth of the directions, by subspace iteration.

    Halko, Martinsson and Tropp, Finding Structure with Randomness, 2011,
    Algorithm 4.4. The random start is the same each time.

    Args:
        factor (Tensor): F, ``[G, N, M]``.

    Returns:
        Narrow: With ``max(M / 8, 1)`` directions.
    """
    groups, columns, outputs = factor.shape
    count = max(outputs // ONE_IN, 1)
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(groups, columns, count, generator=rng).to(factor)
    basis = _orthonormal(factor.mT @ start)
    for _ in range(ITERATIONS):
        basis = _orthonormal(factor.mT @ (factor @ basis))
    short = factor @ basis
    rest = factor.double().square().sum((1, 2))
    rest -= short.double().square().sum((1, 2))
    tail = (rest / columns).clamp(min=0)
    return Narrow(basis, short, tail)


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """``[B, ..., n]`` times ``[G, n, k]``, each G'th of B with its own."""
    flat = rows.reshape(len(matrices), -1, rows.shape[-1])
    return (flat @ matrices).view(*rows.shape[:-1], -1)


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns)[0]
