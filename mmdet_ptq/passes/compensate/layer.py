# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Compensated rounding of one layer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...calibration import weight_matrix, weight_tensor
from ...layers import QuantLayer
from ...quantizers import PlacesValues
from .moments import PairedMoments, Product, System
from .nearest import Nearest
from .placed import Placed
from .rounding import (
    compensate,
    damped,
    descend,
    inverse_root,
    solved,
    squared_error,
)

#: added to every damping, as a share of the largest second moment, so that a
#: channel that is always 0 has something on the diagonal
FLOOR = 1e-5

#: second moments below this share of those around 0 are rounding of float64
DEAD = 1e-12


@dataclass(frozen=True)
class Found:
    """What became of a layer.

    Attributes:
        before (float): Mean squared error of its output with each weight
            rounded to the nearest value, over the mean square of its float
            output.
        after (float): The same with the weight that was found.
        damping (float): What the factorization took.
        share (float): How much of the correction towards the float output
            was made.
        dead (int): Columns that say nothing: always 0, or, where a bias
            takes the mean, always the same.
        refitted (bool): Whether steps were fitted to the codes.
    """

    before: float
    after: float
    damping: float
    share: float
    dead: int
    refitted: bool


def round_layer(
    layer: QuantLayer,
    moments: PairedMoments,
    damping: float,
    towards_float: bool,
    rounds: int,
    refits: int = 0,
) -> Found:
    """Rounds the weight of a layer and sets its bias.

    Args:
        layer (QuantLayer): With a weight quantizer that has a grid.
        moments (PairedMoments): Of its inputs; there has been data.
        damping (float): Share of the mean second moment that is added; ten
            times as much each time the factorization fails.
        towards_float (bool): Whether the output of the float detector is
            aimed at, else what the float weight makes of the inputs.
        rounds (int): Of coordinate descent afterwards.
        refits (int): How often steps are fitted to the codes, and codes to
            the steps.

    Returns:
        Found: Errors before and after.
    """
    # MMCV's deformable convolutions know no bias
    centred = layer._parameters.get('bias') is not None
    share = 0.0
    if towards_float:
        share = confirmed_share(moments, centred, damping)
    system, product = moments.system(centred), moments.product
    weight = product.parted(weight_matrix(layer, layer.weight.detach()))
    weight = weight.to(system.second)
    found, errors, damping, refitted = _rounded(
        layer, product, system, weight, share, damping, rounds, refits
    )
    matrix = product.joined(found)
    layer.fix_weight(weight_tensor(layer, matrix).to(layer.weight.dtype))
    if centred:
        shift = _bias_shift(system, weight - found, towards_float)
        shift = shift.unflatten(0, (-1, product.blocks)).sum(1)
        layer.shift_bias(shift.flatten().to(layer.bias.dtype))
    # outputs of the blocks of a group add up
    scale = product.blocks / (system.power or 1.0)
    before, after = (float(e.mean()) * scale for e in errors)
    return Found(before, after, damping, share, _dead(system), refitted)


def _taken(matrix: Tensor, order: Tensor) -> Tensor:
    """Columns of ``[G, R, N]`` in another order ``[G, N]``."""
    return matrix.gather(2, order[:, None].expand_as(matrix))


def _factored(
    second: Tensor, damping: float, factor: Callable[[Tensor], Tensor | None]
) -> tuple[Tensor, Tensor, float]:
    """What a factorization gives, damped moments, and the damping it took."""
    floor = FLOOR * second.diagonal(dim1=1, dim2=2).amax(1) + 1e-8
    while True:
        turned = damped(second, floor, damping)
        found = factor(turned)
        if found is not None:
            return found, turned, damping
        damping = max(10 * damping, 1e-6)


def _rounded(
    layer: QuantLayer,
    product: Product,
    system: System,
    weight: Tensor,
    share: float,
    damping: float,
    rounds: int,
    refits: int,
) -> tuple[Tensor, tuple[Tensor, Tensor], float, bool]:
    """Compensated values, errors of the nearest and of these, the damping.

    At last, whether steps were fitted.

    An output channel whose nearest values are no worse keeps them.
    """
    # the largest inputs first: their errors are the dearest
    diagonal = system.second.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(1, descending=True)
    places = isinstance(layer.weight_quantizer, PlacesValues)
    nearest = (Placed if places else Nearest)(layer, product, order)
    weight = _taken(weight, order)
    second = _taken(_taken(system.second, order).mT, order)
    root, turned, damping = _factored(second, damping, inverse_root)
    del second
    aim = weight
    if share:
        # D H⁻¹
        change = (_taken(system.first, order) @ root.mT) @ root
        aim = weight + share * change
    plain, found = nearest.all(weight), compensate(aim, root, nearest)
    if rounds:
        found = descend(found, aim, turned, nearest, rounds)
    before = squared_error(plain, aim, turned)
    after = squared_error(found, aim, turned)
    found = torch.where((after > before)[..., None], plain, found)
    after = after.minimum(before)
    refitted = bool(refits) and nearest.refits
    if refitted:
        for _ in range(refits):
            found, after = _refitted(found, after, aim, turned, nearest)
        found = nearest.settle(found)
    found = _taken(found, order.argsort(1))
    return found, (before, after), damping, refitted


def _refitted(
    found: Tensor,
    errors: Tensor,
    aim: Tensor,
    moments: Tensor,
    nearest: Nearest,
) -> tuple[Tensor, Tensor]:
    """Values on steps that fit them, where that is better, and errors."""
    steps = nearest.steps
    start = nearest.refit(found, aim, moments)
    again = descend(start, aim, moments, nearest, 1)
    new = squared_error(again, aim, moments)
    better = nearest.summed(new) < nearest.summed(errors)
    kept = better.view(-1, *[1] * (steps.dim() - 1))
    nearest.steps = torch.where(kept, nearest.steps, steps)
    rows = nearest.spread(better)
    return (
        torch.where(rows[..., None], again, found),
        torch.where(rows, new, errors),
    )


def _dead(system: System) -> int:
    """Columns that are the same in every row, if there is a bias, or 0."""
    spread = system.second.diagonal(dim1=1, dim2=2)
    return int((spread <= DEAD * (spread + system.mean.square())).sum())


def _bias_shift(system: System, change: Tensor, towards_float: bool) -> Tensor:
    """What keeps the mean output, ``[G, R]``."""
    shift = (change @ system.mean[..., None].to(change))[..., 0]
    return shift + system.missing if towards_float else shift


def confirmed_share(
    moments: PairedMoments, centred: bool, damping: float
) -> float:
    """How much of a correction found on some images holds on others.

    A correction ``D H⁻¹`` is found on half of the images. The share of it
    that lessens the error on the other half most is a parabola's vertex;
    both ways are added up. The correction of all images is then made to that
    share: with few images most of it may be chance.

    Args:
        moments (PairedMoments): Of the layer's inputs.
        centred (bool): See :meth:`PairedMoments.system`.
        damping (float): Of the factorization.

    Returns:
        float: From 0 to 1; 0 where one half has no data.
    """
    if not all(moments.counts):
        return 0.0
    halves = [moments.system(centred, half) for half in (0, 1)]
    gain = loss = 0.0
    for one, other in (halves, halves[::-1]):
        found, _, _ = _factored(
            one.second, damping, partial(solved, first=one.first)
        )
        gain += float((found * other.first).sum())
        loss += float(((found @ other.second) * found).sum())
    return min(1.0, max(0.0, gain / loss)) if loss > 0 else 0.0
