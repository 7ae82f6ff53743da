# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The exhaustive subset search of SubSetQ, made fast without shortcuts.

The nearest magnitudes of sorted weights are runs, and prefix sums give the
size and the sum of a run at once. So a fit step over all subsets costs a
few binary searches a subset, exactly, however many weights there are:
neither a histogram nor a pruning pass is needed.
"""

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional as F

# SubSetQ's base lists: the powers of two with these exponents, and zero.
EXPONENTS = ((0, 1, 3), (0, 2, 4))
# The alternating fit of the paper's code, on weights scaled to at most 1.
MAX_STEPS = 1000
TOLERANCE = 1e-5
# Below the least positive float32: stands for the maximum of zeros.
NOTHING = 1e-45


@lru_cache(maxsize=1)
def universal_set() -> Tensor:
    """Every ``(a + b) / 2`` of the two base lists.

    Returns:
        Tensor: float64 ``[15]``, ascending, from 0 to 1.
    """
    first, second = ((0.0, *(2.0**-e for e in es)) for es in EXPONENTS)
    found = {(a + b) / 2 for a in first for b in second}
    return torch.tensor(sorted(found), dtype=torch.float64)


@lru_cache(maxsize=3)
def candidate_subsets(bits: int) -> Tensor:
    """Every choice of ``2**(bits - 1)`` magnitudes, each over its maximum.

    Choices that this makes equal, such as {0, 1/2} and {0, 1}, are listed
    once.

    Args:
        bits (int): Bit-width with the sign, 2 to 4.

    Returns:
        Tensor: float64 ``[S, 2**(bits - 1)]``, ascending in each row, in
        the order of ``itertools.combinations``.
    """
    chosen = combinations(universal_set().tolist(), 2 ** (bits - 1))
    unique = dict.fromkeys(tuple(v / s[-1] for v in s) for s in chosen)
    return torch.tensor(list(unique), dtype=torch.float64)


def default_subset(bits: int) -> Tensor:
    """Magnitudes at even positions of the universal set, ends included.

    The universal set is denser near zero, as trained weights are, and a
    choice at even positions stays so. It holds 0 and 1.

    Args:
        bits (int): Bit-width with the sign, 2 to 4.

    Returns:
        Tensor: float32 ``[2**(bits - 1)]``, ascending.
    """
    every = universal_set()
    count = 2 ** (bits - 1)
    at = torch.linspace(0, len(every) - 1, count, dtype=torch.float64)
    return every[at.round().long()].to(torch.float32)


class SortedRows:
    """Magnitudes of rows, sorted, with their prefix sums.

    Args:
        rows (Tensor): Finite floats ``[R, M]``, not empty.

    Attributes:
        top (Tensor): float64 ``[R, 1]``, the maximum of ``|rows|``.
        points (Tensor): float64 ``[R, M]``, ``|rows| / top`` ascending.
        sums (Tensor): float64 ``[R, M + 1]``, sums of the first points.
        energy (Tensor): float64 ``[R, 1]``, sums of the squared points.
        mean (Tensor): float64 ``[R, 1]``, means of the points.
    """

    def __init__(self, rows: Tensor) -> None:
        points = rows.detach().contiguous().abs().sort(1).values
        points = points.to(torch.float64)
        self.top = points[:, -1:].clamp(min=NOTHING)
        self.points = points.div_(self.top)
        sums = points.cumsum(1) if points.is_cpu else whole_sums(points)
        self.sums = F.pad(sums, (1, 0))
        self.energy = torch.linalg.vecdot(points, points).unsqueeze(1)
        self.mean = self.sums[:, -1:] / points.shape[1]

    def step(self, subsets: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the alternating fit: assignment, then least squares.

        With ``q`` the magnitude nearest to each point (of two, the lower), the
        error of alpha is ``||points - alpha q||_2`` and the next alpha
        ``<q, points> / <q, q>``, or the mean of the points if q is 0.

        Args:
            subsets (Tensor): float64 ``[S, K]``, ascending.
            alpha (Tensor): float64 ``[R, S]``.

        Returns:
            tuple[Tensor, Tensor]: float64 ``[R, S]``, error and next alpha.
        """
        middle = (subsets[:, 1:] + subsets[:, :-1]) / 2
        bounds = alpha.unsqueeze(-1) * middle
        ends = torch.searchsorted(self.points, bounds.flatten(1), right=True)
        ends = F.pad(ends.view(bounds.shape), (1, 0))
        ends = F.pad(ends, (0, 1), value=self.points.shape[1])
        sums = self.sums.gather(1, ends.flatten(1)).view(ends.shape)
        product = (sums.diff(dim=-1) * subsets).sum(-1)
        power = (ends.diff(dim=-1) * subsets.square()).sum(-1)
        error = self.energy + alpha * (alpha * power - 2 * product)
        best = torch.where(power > 0, product / power, self.mean)
        return error.clamp_(min=0.0).sqrt_(), best


def whole_sums(points: Tensor) -> Tensor:
    """Running sums of whole multiples of a power of two.

    They are the same in any order; a GPU's sums of floats may differ from
    run to run.

    Args:
        points (Tensor): float64 ``[R, M]`` from 0 to 1.

    Returns:
        Tensor: float64 ``[R, M]``; each point counts to 2^-35 or better, for
        M below 2^27.
    """
    unit = 2.0 ** min(40, 62 - points.shape[1].bit_length())
    return (points * unit).round().long().cumsum(1).double() / unit


def alternate(
    rows: SortedRows, subsets: Tensor, start: Tensor, look: int = 1
) -> tuple[Tensor, Tensor]:
    """Fits a scale to every pair of a row and a subset.

    Each pair goes on until its error changes by less than ``TOLERANCE``.

    Args:
        rows (SortedRows): R rows.
        subsets (Tensor): float64 ``[S, K]``, ascending.
        start (Tensor): float64 ``[R, S]``, the first scales, in units of
            each row's maximum.
        look (int): Every how many steps to look which subsets still move. A
            GPU has to be waited for then, and does not mind the others; the
            result is the same.

    Returns:
        tuple[Tensor, Tensor]: float64 ``[R, S]``: scales, in those units,
        and ``||points - scale q||_2`` at these scales.
    """
    alpha = start.clone()
    before = torch.zeros_like(alpha)
    live = torch.ones_like(alpha, dtype=torch.bool)
    at = torch.arange(subsets.shape[0], device=alpha.device)
    for i in range(MAX_STEPS):
        if i % look == 0:
            at = live.any(0).nonzero()[:, 0]
            if not at.numel():
                break
        error, better = rows.step(subsets[at], alpha[:, at])
        on = live[:, at]
        alpha[:, at] = torch.where(on, better, alpha[:, at])
        live[:, at] = on & ((before[:, at] - error).abs() >= TOLERANCE)
        before[:, at] = error
    return alpha, rows.step(subsets, alpha)[0]


def _look(x: Tensor) -> int:
    """Steps of a fit between two looks at it."""
    return 1 if x.is_cpu else 25


def search_subset(weight: Tensor, bits: int) -> tuple[Tensor, float]:
    """The best subset for a whole weight, and its scale.

    Args:
        weight (Tensor): Finite, not empty, any shape.
        bits (int): Bit-width with the sign, 2 to 4.

    Returns:
        tuple[Tensor, float]: float64 ``[2**(bits - 1)]`` ascending up to 1,
        and the scale in units of the weight.
    """
    rows = SortedRows(weight.reshape(1, -1))
    subsets = candidate_subsets(bits).to(weight.device)
    start = rows.points.new_ones(1, len(subsets))
    alpha, error = alternate(rows, subsets, start, _look(weight))
    best = int(error.argmin())
    return subsets[best], float(alpha[0, best] * rows.top)


def fit_rows(rows: Tensor, magnitudes: Tensor, scale: float) -> Tensor:
    """A scale of its own for every row.

    Starts from the row's maximum and from the given scale and keeps the
    better end: no row gets worse than under the given scale, and no narrow
    row is stuck with all its elements at one magnitude.

    Args:
        rows (Tensor): Finite, not empty, ``[R, M]``.
        magnitudes (Tensor): float64 ``[K]``, ascending.
        scale (float): Of the whole weight, in units of the weight.

    Returns:
        Tensor: float64 ``[R]``, in units of the weight.
    """
    points = SortedRows(rows)
    start = torch.cat([torch.ones_like(points.top), scale / points.top], 1)
    subsets = magnitudes.to(rows.device).expand(2, -1)
    alpha, error = alternate(points, subsets, start, _look(rows))
    best = error.argmin(1, keepdim=True)
    return (alpha.gather(1, best) * points.top)[:, 0]
