# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What one layer gets, quantized, and what it should give."""

from dataclasses import dataclass

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...calibration import weight_matrix


def blocks_of(columns: int, most: int) -> int:
    """Into how many equal blocks columns are parted.

    Args:
        columns (int): Of a weight, in one group.
        most (int): Columns of a block.

    Returns:
        int: The least divisor that leaves no more than ``most`` in a block.
    """
    return next(
        n for n in range(-(-columns // most), columns + 1) if columns % n == 0
    )


@dataclass
class System:
    """Normal equations of the output of a layer, for each of G groups.

    Attributes:
        second (Tensor): ``[G, N, N]``, mean of ``xᵀ x`` over quantized rows.
        first (Tensor): ``[G, R, N]``, mean of ``mᵀ x``: m is what the output
            misses, as the row is not that of the float detector.
        mean (Tensor): ``[G, N]``, mean row.
        missing (Tensor): ``[G, R]``, mean of m.
        power (float): Mean square of the layer's float output.
    """

    second: Tensor
    first: Tensor
    mean: Tensor
    missing: Tensor
    power: float


class Product:
    """The product of a layer's rows and weight, columns in blocks.

    Args:
        layer (nn.Module): A linear layer or a convolution of any kind.
        most (int): Columns that are looked at together. A weight with more
            is parted into blocks of neighbouring columns, each a group of
            its own.

    Attributes:
        blocks (int): Blocks of each group of the layer.
        weight (Tensor): Float weight ``[G, R, N]``, G with the blocks.
    """

    def __init__(self, layer: nn.Module, most: int) -> None:
        weight = weight_matrix(layer, layer.weight.detach().float())
        self.blocks = blocks_of(weight.shape[2], most)
        self.weight = self.parted(weight)

    def parted(self, matrix: Tensor) -> Tensor:
        """``[G, T, N]`` with each block of columns as a group."""
        parts = matrix.unflatten(2, (self.blocks, -1)).transpose(1, 2)
        return parts.flatten(0, 1)

    def joined(self, parts: Tensor) -> Tensor:
        """Inverse of :meth:`parted`."""
        matrix = parts.unflatten(0, (-1, self.blocks)).transpose(1, 2)
        return matrix.flatten(2)

    def __call__(self, rows: Tensor) -> Tensor:
        """What each block makes of rows.

        Args:
            rows (Tensor): As the layer sees them, before :meth:`parted`.

        Returns:
            Tensor: ``[G, T, R]``; over the blocks they add up to the
            output of the layer, without its bias.
        """
        return self.parted(rows.float()) @ self.weight.mT


class PairedMoments:
    """Second moments of quantized rows, and products of what they miss.

    With Xq the rows behind the quantized layers and X the same rows of the
    float detector::

        H = Xqᵀ Xq,    D = ((X - Xq) Wᵀ)ᵀ Xq

    Sums are float64: in float32 the small eigenvalues would be lost. Images
    go into two halves, so that what one half finds can be tried on the
    other.

    Args:
        product (Product): Of the layer.

    Attributes:
        counts (list[int]): Rows of each half so far.
    """

    def __init__(self, product: Product) -> None:
        self.product = product
        self.counts = [0, 0]
        self._sums = [self._zeros() for _ in range(2)]

    @property
    def count(self) -> int:
        """Rows of each group so far."""
        return sum(self.counts)

    @property
    def finite(self) -> bool:
        """Whether no row and no output held NaN or Inf."""
        return all(
            bool(torch.isfinite(total).all())
            for half in self._sums
            for total in half.values()
        )

    def add(self, rows: Tensor, exact: Tensor | None, half: int) -> None:
        """Adds the rows of one call.

        Args:
            rows (Tensor): ``[G, T, N]``, quantized.
            exact (Tensor, optional): What the product makes of the same
                rows of the float detector; None: nothing is missing.
            half (int): 0 or 1.
        """
        if rows.shape[1] == 0:
            return
        ours = self.product(rows)
        exact = ours if exact is None else exact
        missing = (exact - ours).double()
        output = exact.unflatten(0, (-1, self.product.blocks)).sum(1).double()
        rows = self.product.parted(rows.float()).double()
        sums = self._sums[half]
        sums['H'].baddbmm_(rows.mT, rows)
        sums['D'].baddbmm_(missing.mT, rows)
        sums['rows'] += rows.sum(1)
        sums['missing'] += missing.sum(1)
        sums['power'] += output.square().mean((0, 2)).sum()
        self.counts[half] += rows.shape[1]

    def _zeros(self) -> dict[str, Tensor]:
        weight = self.product.weight
        groups, outputs, columns = weight.shape
        shapes = dict(
            H=(groups, columns, columns),
            D=(groups, outputs, columns),
            rows=(groups, columns),
            missing=(groups, outputs),
            power=(),
        )
        return {
            name: weight.new_zeros(shape, dtype=torch.float64)
            for name, shape in shapes.items()
        }

    def merge(self) -> None:
        """Adds the sums of all ranks; called once, after the last image."""
        if get_world_size() == 1:
            return
        counts = torch.tensor(self.counts, device=self.product.weight.device)
        all_reduce(counts)
        self.counts = counts.tolist()
        for total in [t for half in self._sums for t in half.values()]:
            all_reduce(total)

    def system(self, centred: bool, half: int | None = None) -> System:
        """The normal equations of the layer's output.

        Args:
            centred (bool): Whether a bias takes the means: moments are then
                around the mean row and the mean of what is missing.
            half (int, optional): Of one half of the images alone.
        """
        halves = self._sums if half is None else [self._sums[half]]
        n = self.count if half is None else self.counts[half]
        total = {name: halves[0][name] / n for name in halves[0]}
        for more in halves[1:]:
            for name, one in more.items():
                total[name].add_(one, alpha=1 / n)
        second, first, mean, missing, power = total.values()
        if centred:
            # in place: these are as large as all the rest
            second.baddbmm_(mean[..., None], mean[:, None], alpha=-1)
            first.baddbmm_(missing[..., None], mean[:, None], alpha=-1)
        return System(second, first, mean, missing, float(power))
