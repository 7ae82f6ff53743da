# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Few directions of an output, against the whole in double precision."""

import pytest
import torch

from mmdet_ptq.passes.search_scales import search as module
from mmdet_ptq.passes.search_scales.narrow import narrow
from mmdet_ptq.passes.search_scales.objectives import Squares
from mmdet_ptq.passes.search_scales.search import Grid, search
from mmdet_ptq.passes.search_scales.terms import Term
from mmdet_ptq.quantizers import UniformQuantizer


def rng():
    return torch.Generator().manual_seed(0)


def squares(error, factor, offset):
    """``[B, C]``, one block and candidate after another."""
    share = len(error) // len(factor)
    found = torch.zeros(*error.shape[:2], dtype=torch.float64)
    for b in range(len(error)):
        for c in range(error.shape[1]):
            off = error[b, c].double() @ factor[b // share].double()
            found[b, c] = (off + offset[b].double()).square().sum()
    return found


def test_factor_that_is_all_in_few_directions():
    """Each group has its own; two blocks share one; some columns only."""
    few = torch.randn(2, 20, 16, generator=rng())
    factor = few @ torch.randn(2, 16, 160, generator=rng())
    error = torch.randn(4, 3, 5, 8, generator=rng())
    columns = slice(4, 12)
    # what the offset has across these directions is the same for each
    wide = torch.randn(4, 5, 20, generator=rng())
    offset = (wide.view(2, 10, 20) @ factor).view(4, 5, 160)
    view = narrow(factor)
    assert view.factor.shape == (2, 20, 20)
    found = view.loss(error, columns, view.turned(offset))
    wanted = squares(error, factor[:, columns], offset)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1.0)


def test_strongest_directions_are_kept():
    """Those of the singular values, largest first."""
    left = torch.linalg.qr(torch.randn(160, 160, generator=rng()))[0]
    right = torch.linalg.qr(torch.randn(160, 160, generator=rng()))[0]
    values = 0.9 ** torch.arange(160)
    values[20:] *= 0.1
    view = narrow((left * values @ right.T)[None])
    kept = (view.basis[0].T @ right[:, :20]).square().sum()
    assert float(kept) == pytest.approx(20, rel=1e-3)
    rest = values[20:].double().square().sum() / 160
    assert float(view.tail) == pytest.approx(float(rest), rel=1e-3)


def test_rest_counts_as_if_it_were_even():
    """A factor without any direction of its own keeps its squares."""
    factor = 3 * torch.eye(160)[None]
    error = torch.randn(1, 4, 50, 160, generator=rng())
    view = narrow(factor)
    none = view.turned(torch.zeros(1, 50, 160))
    found = view.loss(error, slice(0, 160), none)
    wanted = 9 * error.double().square().sum((-1, -2))
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0)


def problem(seed):
    """A weight with 30 rows, and 160 outputs of each; off already."""
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 1, 40, generator=made)
    factor = torch.randn(1, 40, 160, generator=made)
    offset = torch.randn(30, 1, 160, generator=made)
    quantizer = UniformQuantizer(3, True, 'channel', axis=0, role='weight')
    quantizer.set_range(x[:, 0].amin(1), x[:, 0].amax(1))

    def now():
        return quantizer(x[:, 0])[:, None]

    rows = torch.arange(30)[:, None]
    rest = torch.zeros(30, dtype=torch.float64)
    return quantizer, Term(x, factor, offset, rows, now, rest), x


@pytest.mark.parametrize('final', [8, 1])
def test_last_look_is_at_all_outputs(final, monkeypatch):
    """It tells what the first look cannot."""
    monkeypatch.setattr(module, 'FINAL', final)
    grid = Grid(progressive=False, count=20, fractions=(0.1, 1.1))
    quantizer, term, x = problem(0)
    ends = x[:, 0].amin(1), x[:, 0].amax(1)
    losses = []
    for share in (*(0.1 + i / 20 for i in range(20)), 1.0):
        one = UniformQuantizer(3, True, 'channel', axis=0, role='weight')
        one.set_range(*(end * share for end in ends))
        error = (one(x[:, 0])[:, None] - x)[:, None]
        losses.append(squares(error, term.factor, term.offset)[:, 0])
    best = float(torch.stack(losses).amin(0).sum())
    after = search(quantizer, [term], x[:, 0], Squares(), grid)[1]
    if final == 8:
        assert after == pytest.approx(best, rel=1e-4)
    else:
        assert best * 1.001 < after < best * 1.3
