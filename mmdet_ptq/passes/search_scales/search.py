# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The best candidates of one quantizer."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from ...quantizers import BaseQuantizer, HasRange, Ranges, Refines, Searchable
from .narrow import LEAST, Narrow, narrow
from .objectives import Objective
from .terms import Term

#: elements that are worked on at once, of a CPU and of a GPU
BLOCK, GPU_BLOCK = 1 << 20, 1 << 26

#: that are compared in all outputs, after a look in few directions
FINAL = 8

Candidates = tuple[Tensor, ...]


@dataclass(frozen=True)
class Grid:
    """Which candidates are tried.

    Attributes:
        progressive (bool): Whether they are made anew around the best.
        count (int): How many to begin with.
        keep (int): How many of each row go on.
        each (int): How many are made around each of those.
        steps (int): How often.
        fractions (tuple[float, float]): Least and greatest share of the
            range, of candidates that are ranges.
    """

    progressive: bool = True
    count: int = 128
    keep: int = 4
    each: int = 4
    steps: int = 3
    fractions: tuple[float, float] = (0.01, 1.2)


def search(
    quantizer: BaseQuantizer,
    terms: list[Term],
    samples: Tensor,
    objective: Objective,
    grid: Grid,
) -> tuple[float, float]:
    """Gives a quantizer the best candidate of each row.

    Rows that serve different blocks of outputs are searched at once, rows
    that serve the same in turn. If all together are worse than what was
    there, that is put back. Where squares of many outputs are counted,
    candidates are compared in few directions of these at first, and those
    that seem best in all of them at last.

    Args:
        quantizer (BaseQuantizer): A :class:`Searchable` one with a grid.
        terms (list[Term]): All outputs that it has a part in.
        samples (Tensor): ``[K, S]``, values of each row.
        objective (Objective): What is to be least.
        grid (Grid): What is tried.

    Returns:
        tuple[float, float]: The objective before and after.
    """
    before = loss_now(terms, objective)
    kept = copy.deepcopy(quantizer.state_dict())
    first = _first(quantizer, samples, grid)
    runs = terms[0].rows.shape[1]
    # what is off with all rows as they are
    errors = [term.now() - term.x for term in terms] if runs > 1 else []
    off = [_off(term) for term in terms] if runs > 1 else []
    best: list[Tensor] = [c.new_zeros(len(samples), 1) for c in first]
    views = [_narrow(term, objective) for term in terms]
    for run in range(runs):
        part = _Part(quantizer, terms, objective, run, errors, off, views)
        some = type(first)(*(c[part.rows] for c in first))
        found = _best(quantizer, part, some, grid)
        for whole, one in zip(best, found, strict=True):
            whole[part.rows] = one.to(whole)
        off = part.off_with(found) if runs > 1 else off
    shape = _level_shape(quantizer, len(samples))
    index = torch.zeros(shape, dtype=torch.int64, device=samples.device)
    quantizer.adopt(type(first)(*best), index)
    after = loss_now(terms, objective)
    if not after < before:
        quantizer.load_state_dict(kept)
        after = before
    return before, after


def loss_now(terms: list[Term], objective: Objective) -> float:
    """The objective with all quantizers as they are."""
    total = 0.0
    for term in terms:
        loss = objective(_off(term)[:, None], term)[:, 0].double()
        total = total + loss.sum() + term.rest.sum()
    return float(total)


def _off(term: Term) -> Tensor:
    error = term.now() - term.x
    every = slice(0, term.x.shape[2])
    return term.times_factor(error, every) + term.offset


def _narrow(term: Term, objective: Objective) -> Narrow | None:
    alike = objective.squares and term.factor is not None
    if not alike or term.weight is not None or term.factor.shape[2] < LEAST:
        return None
    return narrow(term.factor)


def shares_of(fractions: tuple[float, float], count: int) -> Tensor:
    """Shares of a range that are tried, ``[count]``.

    From the least on, evenly; the greatest is the one after the last, as in
    the code of PTQ4ViT.
    """
    least, most = fractions
    return least + (most - least) * (torch.arange(count) / count)


def _level_shape(quantizer: BaseQuantizer, rows: int) -> tuple[int, ...]:
    levels = quantizer.num_levels()
    return (levels, rows // levels) if levels > 1 else (rows,)


def _first(quantizer: Searchable, samples: Tensor, grid: Grid) -> Candidates:
    """Candidates to begin with, those in force among them if possible."""
    if grid.progressive and isinstance(quantizer, Refines):
        return quantizer.coarse(samples, grid.count)
    low, high = samples.amin(1), samples.amax(1)
    shares = shares_of(grid.fractions, grid.count).to(samples.device)
    found = quantizer.candidates(low, high, shares)
    if isinstance(found, Ranges) and isinstance(quantizer, HasRange):
        now = [end.reshape(-1, 1).to(low) for end in quantizer.range()]
        pairs = zip(found, now, strict=True)
        return Ranges(*(torch.cat(pair, 1) for pair in pairs))
    return found


def _best(
    quantizer: Searchable, part: '_Part', found: Candidates, grid: Grid
) -> Candidates:
    """The best candidate of each row, ``[K, 1]``."""
    if grid.progressive and isinstance(quantizer, Refines):
        for _ in range(grid.steps):
            kept = _pick(found, part.glance(found), grid.keep)
            found = quantizer.refined(kept, grid.each)
    if part.narrow:
        found = _pick(found, part.glance(found), FINAL)
    return _pick(found, part.losses(found), 1)


def _pick(found: Candidates, losses: Tensor, count: int) -> Candidates:
    count = min(count, losses.shape[1])
    index = losses.topk(count, 1, largest=False).indices
    return type(found)(*(c.gather(1, index) for c in found))


class _Part:
    """Losses of candidates for the rows of one run of columns.

    Args:
        quantizer (Searchable): Tries them.
        terms (list[Term]): Outputs.
        objective (Objective): The loss.
        run (int): Which run of columns.
        errors (list[Tensor]): Q(X) - X of each term with all rows as they
            were at first; empty if there is one run.
        off (list[Tensor]): How far each term is off with all rows as they
            are; empty if there is one run.
        views (list[Narrow | None]): Of each term, few directions.

    Attributes:
        rows (Tensor): int64, rows of the quantizer.
        narrow (bool): Whether a term is looked at in few directions.
    """

    def __init__(
        self,
        quantizer: Searchable,
        terms: list[Term],
        objective: Objective,
        run: int,
        errors: list[Tensor],
        off: list[Tensor],
        views: list[Narrow | None],
    ) -> None:
        self.quantizer = quantizer
        self.terms = terms
        self.objective = objective
        self.views = views
        every = torch.cat([term.rows[:, run] for term in terms])
        self.rows, local = every.unique(return_inverse=True)
        self.local = local.split([len(term.rows) for term in terms])
        self.columns, self.offsets = [], []
        for i, term in enumerate(terms):
            wide = term.x.shape[2] // term.rows.shape[1]
            columns = slice(run * wide, (run + 1) * wide)
            self.columns.append(columns)
            if off:
                mine = errors[i][..., columns]
                self.offsets.append(off[i] - term.times_factor(mine, columns))
            else:
                self.offsets.append(term.offset)
        self.turned = [
            None if view is None else view.turned(offset)
            for view, offset in zip(views, self.offsets, strict=True)
        ]
        self.narrow = any(view is not None for view in views)

    def losses(self, candidates: Candidates) -> Tensor:
        """Losses ``[K, C]``, float64."""
        return self._losses(candidates, [None] * len(self.terms))

    def glance(self, candidates: Candidates) -> Tensor:
        """About the losses, of terms with few directions; ``[K, C]``."""
        return self._losses(candidates, self.views)

    def _losses(
        self, candidates: Candidates, views: list[Narrow | None]
    ) -> Tensor:
        rows, count = candidates[0].shape
        out = candidates[0].new_zeros(rows, count, dtype=torch.float64)
        for i, (term, view) in enumerate(zip(self.terms, views, strict=True)):
            each = max(term.x[..., self.columns[i]].numel(), 1)
            each += term.offset.numel()
            step = max(1, _block(term.x) // each)
            for at in range(0, count, step):
                some = [c[:, at : at + step] for c in candidates]
                error = self._error(i, type(candidates)(*some))
                if view is None:
                    off = self._off(i, error)
                    loss = self.objective(off, term).double()
                else:
                    loss = view.loss(error, self.columns[i], self.turned[i])
                out[:, at : at + step].index_add_(0, self.local[i], loss)
        return out

    def _error(self, i: int, candidates: Candidates) -> Tensor:
        """Q(X) - X in the columns, ``[B, C, U, n]``."""
        x = self.terms[i].x[..., self.columns[i]]
        mine = type(candidates)(*(c[self.local[i]] for c in candidates))
        rows = self.quantizer.of_rows(self.rows[self.local[i]])
        tried = rows.trial(x.reshape(len(x), -1), mine)
        return tried.view(len(x), -1, *x.shape[1:]).sub_(x[:, None])

    def _off(self, i: int, error: Tensor) -> Tensor:
        """``[B, C, U, M]``."""
        found = self.terms[i].times_factor(error, self.columns[i])
        return found + self.offsets[i][:, None]

    def off_with(self, best: Candidates) -> list[Tensor]:
        """How far each term is off with the best candidates ``[K, 1]``."""
        return [
            self._off(i, self._error(i, best))[:, 0]
            for i in range(len(self.terms))
        ]


def _block(x: Tensor) -> int:
    return BLOCK if x.is_cpu else GPU_BLOCK
