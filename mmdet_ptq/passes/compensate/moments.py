# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""What one layer gets, quantized, and what it should give."""

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from ...calibration import weight_matrix

#: columns up to which sums are in float64
WIDE = 6144


class PairedMoments:
    """Second moments of quantized rows, and products of what they miss.

    With Xq the rows behind the quantized layers and X the same rows of the
    float detector, both less a constant shift::

        H = Xqᵀ Xq,    D = ((X - Xq) Wᵀ)ᵀ Xq

    Sums are float64 (float32 for layers of more than 6144 columns), products
    float32.

    Args:
        layer (nn.Module): A linear layer or a convolution of any kind.

    Images go into two halves, so that what one half finds can be tried on
    the other.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.weight = weight_matrix(layer, layer.weight.detach().float())
        self.counts = [0, 0]
        self._shift: Tensor | None = None
        self._sums: list[dict[str, Tensor]] = []

    @property
    def count(self) -> int:
        """Rows of each group so far."""
        return sum(self.counts)

    def add(self, rows: Tensor, exact: Tensor, half: int) -> None:
        """Adds the rows of one call.

        Args:
            rows (Tensor): ``[G, T, N]``, quantized.
            exact (Tensor): The same rows of the float detector.
            half (int): 0 or 1.
        """
        if rows.shape[1] == 0:
            return
        rows, exact = rows.float(), exact.float()
        if self._shift is None:
            self._allocate(rows)
        missing = (exact - rows) @ self.weight.mT
        rows = rows - self._shift
        sums = self._sums[half]
        sums['H'] += rows.mT @ rows
        sums['D'] += missing.mT @ rows
        sums['rows'] += rows.sum(1)
        sums['missing'] += missing.sum(1)
        self.counts[half] += rows.shape[1]

    def _allocate(self, rows: Tensor) -> None:
        groups, outputs, columns = self.weight.shape
        dtype = torch.float64 if columns <= WIDE else torch.float32
        self._shift = rows.mean(1, keepdim=True)
        if get_world_size() > 1:
            # one shift for all ranks: that of none of them
            self._shift = torch.zeros_like(self._shift)
        shapes = dict(
            H=(groups, columns, columns),
            D=(groups, outputs, columns),
            rows=(groups, columns),
            missing=(groups, outputs),
        )
        self._sums = [
            {
                name: rows.new_zeros(shape, dtype=dtype)
                for name, shape in shapes.items()
            }
            for _ in range(2)
        ]

    def merge(self) -> None:
        """Adds the sums of all ranks; called once, after the last image."""
        if get_world_size() == 1:
            return
        if self._shift is None:
            self._allocate(self.weight[:, :1])
        counts = torch.tensor(self.counts)
        all_reduce(counts)
        self.counts = counts.tolist()
        for total in [t for half in self._sums for t in half.values()]:
            all_reduce(total)

    def system(
        self, centred: bool, half: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The normal equations of the layer's output.

        Args:
            centred (bool): Whether a bias takes the means.
            half (int, optional): Of one half of the images alone.

        Returns:
            tuple[Tensor, Tensor, Tensor, Tensor]: H ``[G, N, N]`` and D
            ``[G, R, N]`` over the number of rows, around the means if
            ``centred``; mean row ``[G, N]`` and mean of what is missing
            ``[G, R]``.
        """
        if half is None:
            n, (one, other) = self.count, self._sums
            sums = {name: one[name] + other[name] for name in one}
        else:
            n, sums = self.counts[half], self._sums[half]
        moved, missing = sums['rows'] / n, sums['missing'] / n
        mean = moved + self._shift[:, 0]
        # sums are around the shift: what lies between it and the origin
        off = moved if centred else -self._shift[:, 0].to(moved.dtype)
        second = sums['H'] / n
        first = sums['D'] / n
        if centred:
            second = second - moved[..., None] * moved[:, None]
            first = first - missing[..., None] * moved[:, None]
        else:
            shift = -off
            cross = moved[..., None] * shift[:, None]
            second = second + cross + cross.mT
            second = second + shift[..., None] * shift[:, None]
            first = first + missing[..., None] * shift[:, None]
        return second, first, mean, missing
