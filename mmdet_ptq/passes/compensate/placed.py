# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a layer's weight, where each value can be put anywhere."""

import torch
from torch import Tensor
from torch.nn import functional

from ...layers import QuantLayer
from ...quantizers import PlacesValues
from .moments import Product
from .nearest import Nearest

#: share of the largest second moment that holds values where they are
HOLD = 1e-6
#: elements of one-hot codes at once
BLOCK = 1 << 24


class Placed(Nearest):
    """Rounds columns to values that :meth:`refit` puts elsewhere.

    Its arguments are those of :class:`Nearest`; ``steps`` are the values of
    each row of the quantizer, float64 ``[K, V]``.
    """

    kind = PlacesValues

    def __init__(
        self, layer: QuantLayer, product: Product, order: Tensor
    ) -> None:
        super().__init__(layer, product, order)
        if self.refits:
            self.steps = self._values()

    def _values(self) -> Tensor:
        table: Tensor = self.encoding.table.double()
        return table

    def __call__(self, j: int, column: Tensor) -> Tensor:
        """See :meth:`Nearest.__call__`."""
        if not self.refits:
            return super().__call__(j, column)
        values = self.spread(self.steps)
        codes = _codes(values, column[..., None])
        return values.gather(-1, codes)[..., 0].to(column)

    def refit(self, found: Tensor, target: Tensor, moments: Tensor) -> Tensor:
        """Puts values where the codes fit best, by least squares.

        With S the codes of an output channel, one of ``[N, V]`` in each row,
        and sums over the channels that share values::

            (Sᵀ H S) v = Sᵀ H t

        See :meth:`Nearest.refit` for the arguments.
        """
        values = self.spread(self.steps)
        codes = _codes(values, found)
        wanted = target.double() @ moments.double()
        count = values.shape[-1]
        most = max(1, BLOCK // (codes[:, 0].numel() * count))
        second = values.new_zeros(*values.shape, count)
        first = torch.zeros_like(values)
        for at in torch.arange(codes.shape[1]).split(most):
            here = functional.one_hot(codes[:, at], count).double().mT
            made = here @ moments.double()[:, None]
            second[:, at] = made @ here.mT
            first[:, at] = (here @ wanted[:, at][..., None])[..., 0]
        second, first = self.summed(second), self.summed(first)
        hold = HOLD * second.diagonal(dim1=1, dim2=2).amax(1) + 1e-30
        second.diagonal(dim1=1, dim2=2).add_(hold[:, None])
        first += hold[:, None] * self.steps
        steps = torch.linalg.solve(second, first)
        found = self.spread(steps).gather(-1, codes).to(found)
        self.steps = steps.sort(-1).values
        return found

    def settle(self, found: Tensor) -> Tensor:
        """See :meth:`Nearest.settle`."""
        self.quantizer.place(self.steps)
        self.encoding = self.quantizer.encoding(self._weight)
        self.steps = self._values()
        return self.all(found)


def _codes(values: Tensor, columns: Tensor) -> Tensor:
    """Codes of ``[G, R, N]`` among ascending values ``[G, R, V]``."""
    bounds = (values[..., 1:] + values[..., :-1]) / 2
    return torch.searchsorted(
        bounds, columns.double().contiguous(), right=True
    )
