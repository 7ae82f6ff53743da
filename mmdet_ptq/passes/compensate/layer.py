# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding of one layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...calibration import weight_matrix, weight_tensor
from ...layers import QuantLayer
from ...quantizers import Encoding
from .moments import PairedMoments
from .rounding import (
    compensate,
    damped,
    descend,
    inverse_root,
    squared_error,
)


@dataclass
class Found:
    """Of one layer.

    Attributes:
        before (float): Mean squared error of its output with each weight
            rounded to the nearest value, over calibration rows.
        after (float): With the weight that was found.
        damping (float): What it took.
    """

    before: float
    after: float
    damping: float


def round_layer(
    layer: QuantLayer,
    moments: PairedMoments,
    damping: float,
    towards_float: bool,
    rounds: int,
) -> Found:
    """Rounds the weight of a layer and sets its bias.

    Args:
        layer (QuantLayer): With a weight quantizer that has a grid.
        moments (PairedMoments): Of its inputs.
        damping (float): Share of the mean moment that is added; ten times
            as much each time the factorization fails.
        towards_float (bool): Whether the output of the float detector is
            aimed at, else what the float weight makes of the inputs.
        rounds (int): Of coordinate descent afterwards.

    Returns:
        Found: Errors before and after.
    """
    centred = layer.bias is not None
    second, first, mean, missing = moments.system(centred)
    weight = weight_matrix(layer, layer.weight.detach()).to(second)
    # the largest inputs first: their errors are the dearest
    diagonal = second.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(1, descending=True)
    floor = 1e-5 * diagonal.amax(1) + 1e-8
    second = second.gather(1, order[..., None].expand_as(second))
    second = second.gather(2, order[:, None].expand_as(second))
    across = order[:, None].expand_as(weight)
    aim = weight.gather(2, across)
    while True:
        turned = damped(second, floor, damping)
        root = inverse_root(turned)
        if root is not None:
            break
        damping = max(10 * damping, 1e-6)
    nearest = _Nearest(layer, order)
    plain = nearest.all(aim)
    if towards_float:
        share = _share(moments, centred, damping)
        correction = (first.gather(2, across) @ root.mT) @ root
        aim = aim + share * correction
    found = compensate(aim, root, nearest)
    if rounds:
        found = descend(found, aim, turned, nearest, rounds)
    before = squared_error(plain, aim, turned)
    after = squared_error(found, aim, turned)
    worse = after > before
    found = torch.where(worse[..., None], plain, found)
    matrix = found.gather(2, order.argsort(1)[:, None].expand_as(found))
    layer.fix_weight(weight_tensor(layer, matrix).to(layer.weight.dtype))
    if centred:
        shift = (
            missing + ((weight - matrix) @ mean[..., None].to(matrix))[..., 0]
        )
        if not towards_float:
            shift = shift - missing
        layer.shift_bias(shift.flatten().to(layer.bias.dtype))
    print('share', share if towards_float else None)
    return Found(
        float(before.mean()), float(after.minimum(before).mean()), damping
    )


def _share(moments: PairedMoments, centred: bool, damping: float) -> float:
    """How much of a correction found on some images holds on others.

    Of half of the images, ``correction = D (H + damping)⁻¹``; the share of
    it that lessens the error on the other half most, both ways, at least 0
    and at most 1.
    """
    if not all(moments.counts):
        return 0.0
    halves = [moments.system(centred, half)[:2] for half in (0, 1)]
    gain = loss = 0.0
    for (second, first), (others, wanted) in (halves, halves[::-1]):
        diagonal = second.diagonal(dim1=1, dim2=2)
        floor = 1e-5 * diagonal.amax(1) + 1e-8
        root = inverse_root(damped(second, floor, damping))
        if root is None:
            return 0.0
        found = (first @ root.mT) @ root
        gain += float((found * wanted).sum())
        loss += float(((found @ others) * found).sum())
    return min(1.0, max(0.0, gain / loss)) if loss > 0 else 0.0


class _Nearest:
    """Rounds columns of a weight matrix to the layer's own grid."""

    def __init__(self, layer: QuantLayer, order: Tensor) -> None:
        encoding = layer.weight_quantizer.encoding(layer.weight)
        grain, shape = encoding.granularity, layer.weight.shape
        count = grain.num_rows(shape)
        index = torch.arange(count, device=layer.weight.device)
        index = index[:, None].expand(count, layer.weight.numel() // count)
        rows = weight_matrix(layer, grain.unrows(index, shape))
        self.encoding = encoding
        self.rows = rows.gather(2, order[:, None].expand_as(rows))
        self._taken: tuple[Tensor, Encoding] | None = None

    def __call__(self, j: int, column: Tensor) -> Tensor:
        rows = self.rows[..., j].flatten()
        if self._taken is None or not torch.equal(self._taken[0], rows):
            self._taken = rows, self.encoding.take(rows)
        grid = self._taken[1]
        values = grid.decode(grid.encode(column.reshape(-1, 1)))
        return values.view_as(column).to(column)

    def all(self, matrix: Tensor) -> Tensor:
        """Every column, none knowing of the others."""
        columns = [self(j, matrix[..., j]) for j in range(matrix.shape[2])]
        return torch.stack(columns, 2)
