# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""Losses of candidates."""

from types import SimpleNamespace

import pytest
import torch

from mmdet_ptq.passes.search_scales.objectives import Pearson, Squares


def term_of(exact, image=None, across=False, ranked=False, weight=None):
    return SimpleNamespace(
        exact=exact, image=image, across=across, ranked=ranked, weight=weight
    )


def test_squares_by_hand():
    off = torch.tensor([[[[1.0, 2.0]], [[0.0, 3.0]]]])  # 1 block, 2 tried
    term = term_of(None)
    assert Squares()(off.clone(), term).tolist() == [[5, 9]]
    term = term_of(None, weight=torch.tensor([[[2.0, 0.0]]]))
    assert Squares(weighted=True)(off.clone(), term).tolist() == [[4, 0]]


@pytest.mark.parametrize('size', [0.3, 0.003])  # as of 4 and of 10 bits
@pytest.mark.parametrize('across', [False, True])
def test_correlation_of_each_image(across, size):
    torch.manual_seed(0)
    exact = torch.randn(2, 7, 3) + 100
    off = size * torch.randn(2, 4, 7, 3)
    image = torch.tensor([0, 0, 0, 2, 2, 2, 2])
    wanted = torch.zeros(2, 4, dtype=torch.float64)
    for b in range(2):
        for c in range(4):
            for j in (0, 2):
                y = exact[b, image == j].double().flatten()
                e = off[b, c, image == j].double().flatten()
                rho = torch.stack([y, y + e]).corrcoef()[0, 1]
                wanted[b, c] += 1 - rho
    term = term_of(exact.mT if across else exact, image, across)
    given = off.mT if across else off
    found = Pearson()(given.clone(), term)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


def test_constant_outputs():
    exact = torch.ones(1, 2, 3)
    found = Pearson()(torch.randn(1, 5, 2, 3), term_of(exact))
    assert found.tolist() == [[0.0] * 5]
    # all that differed is one value now
    exact = torch.randn(1, 2, 3)
    found = Pearson()(-exact[:, None], term_of(exact))
    assert found.tolist() == [[1.0]]


def test_order_of_logits():
    """Logits 0 and 1 deviate by sqrt(1/2): the margin is 0.2 of that."""
    exact = torch.tensor([[[0.0, 1.0]]])
    ours = torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]], [[0.5, 0.5]]]])
    off = ours - exact[:, None]
    plain, ranked = (
        Pearson(ranking=0.5)(off.clone(), term_of(exact, ranked=r))
        for r in (False, True)
    )
    extra = (ranked - plain)[0]
    deviation = 0.5**0.5
    wanted = [0, 0.5 * (0.2 + 1 / deviation), 0.5 * 0.2]
    assert extra.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-7)
