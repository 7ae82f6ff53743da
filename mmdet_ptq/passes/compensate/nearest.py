# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The grid of a layer's weight, column by column."""

import torch
from torch import Tensor

from ...calibration import weight_matrix
from ...layers import QuantLayer
from ...quantizers import Rescales
from .moments import Product


class Nearest:
    """Rounds columns of a weight matrix to the layer's own grid.

    Args:
        layer (QuantLayer): With a weight quantizer that has a range.
        product (Product): Says how its columns are parted.
        order (Tensor): ``[G, N]``, the order in which columns are asked for.

    Attributes:
        refits (bool): Whether :meth:`refit` can do anything: all columns
            have one grid, and its quantizer can be changed so.
        steps (Tensor): float64 ``[K, ...]``, what :meth:`refit` changes:
            by what the steps of each row of the quantizer are multiplied.
            See :meth:`settle`.
    """

    kind: type = Rescales

    def __init__(
        self, layer: QuantLayer, product: Product, order: Tensor
    ) -> None:
        weight = layer.weight.detach()
        self.quantizer = layer.weight_quantizer
        self._weight = weight
        self.encoding = self.quantizer.encoding(weight)
        grain, shape = self.encoding.granularity, weight.shape
        count = grain.num_rows(shape)
        index = torch.arange(count, device=weight.device)
        index = index[:, None].expand(count, weight.numel() // count)
        rows = weight_matrix(layer, grain.unrows(index, shape))
        parts = product.parted(rows)
        self._rows = parts.gather(2, order[:, None].expand_as(parts))
        first = self._rows[..., :1]
        # asked once: that columns have one grid is the rule
        alike = torch.equal(self._rows, first.expand_as(self._rows))
        self._row = first[..., 0]
        self._grid = self.encoding.take(first.flatten()) if alike else None
        self.refits = alike and isinstance(self.quantizer, self.kind)
        self.steps = torch.ones(count, dtype=torch.float64).to(weight.device)

    def __call__(self, j: int, column: Tensor) -> Tensor:
        """The nearest values.

        Args:
            j (int): Which column.
            column (Tensor): ``[G, R]``.
        """
        grid = self._grid or self.encoding.take(self._rows[..., j].flatten())
        factors = self.steps[self._rows[..., j]].to(column)
        parts = (column / factors).float().reshape(-1, 1)
        values = grid.decode(grid.encode(parts))
        return values.view_as(column).to(column) * factors

    def all(self, matrix: Tensor) -> Tensor:
        """Every column of ``[G, R, N]``, none knowing of the others."""
        columns = [self(j, matrix[..., j]) for j in range(matrix.shape[2])]
        return torch.stack(columns, 2)

    def summed(self, values: Tensor) -> Tensor:
        """``[G, R, ...]`` added up for each row of the quantizer."""
        values = values.flatten(0, 1).double()
        total = values.new_zeros(len(self.steps), *values.shape[1:])
        return total.index_add_(0, self._row.flatten(), values)

    def spread(self, rows: Tensor) -> Tensor:
        """What belongs to rows of the quantizer, as ``[G, R, ...]``."""
        return rows[self._row]

    def refit(self, found: Tensor, target: Tensor, moments: Tensor) -> Tensor:
        """Sets the steps with which the codes fit best.

        By least squares, they are multiplied by::

            a = (t H wᵀ) / (w H wᵀ)

        added up over the output channels that share a step. That is the
        slope of the wanted output over the one that there is.

        Args:
            found (Tensor): w ``[G, R, N]``, values of the grid.
            target (Tensor): t ``[G, R, N]``.
            moments (Tensor): H ``[G, N, N]``.

        Returns:
            Tensor: ``[G, R, N]``, the same codes on the new grid.
        """
        made = found @ moments
        fits = self.summed((made * target).sum(2))
        power = self.summed((made * found).sum(2))
        slope = torch.where(power > 0, fits / power, 1.0).clamp(0.5, 2.0)
        self.steps = self.steps * slope
        return found * self.spread(slope)[..., None].to(found)

    def settle(self, found: Tensor) -> Tensor:
        """Gives the steps to the quantizer.

        Args:
            found (Tensor): ``[G, R, N]``, values of the grid as it is here.

        Returns:
            Tensor: The same codes, values of the quantizer to the bit.
        """
        self.quantizer.rescale(self.steps)
        self.encoding = self.quantizer.encoding(self._weight)
        self._grid = self.encoding.take(self._row.flatten())
        self.steps = torch.ones_like(self.steps)
        return self.all(found)
