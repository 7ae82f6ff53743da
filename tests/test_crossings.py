# Copyright (c) mmdet-ptq authors. Licensed under Apache-2.0.
"""The counter of crossings sees each of them, and nothing else."""

import pytest
import torch
from crossings import crossings

X = torch.arange(4.0)


@pytest.mark.parametrize(
    'name, action',
    [
        ('_local_scalar_dense', lambda: X[0].item()),
        ('_local_scalar_dense', lambda: bool((X > 9).any())),
        ('nonzero', lambda: torch.where(X > 1)),
        ('index', lambda: X[X > 1]),
        ('index_put_', lambda: X.clone().__setitem__(X > 1, 1.0)),
        ('masked_select', lambda: X.masked_select(X > 1)),
        ('bincount', lambda: torch.bincount(X.long())),
        ('repeat_interleave', lambda: X.repeat_interleave(X.long())),
        ('cpu', lambda: X.cpu()),
        ('to', lambda: X.to('cpu')),
        ('tolist', lambda: X.tolist()),
        ('numpy', lambda: X.numpy()),
        ('tensor', lambda: torch.tensor([1.0])),
        ('rand without device', lambda: torch.rand(3)),
        ('zeros without device', lambda: torch.zeros(3)),
    ],
)
def test_each_crossing(name, action):
    with crossings() as found:
        action()
    assert found[name] == 1


def test_what_stays_on_the_device():
    other = X + 1
    with crossings() as found:
        torch.where(X > 1, X, other)
        X.to(other), X.to(torch.float64), other[torch.arange(4, device='cpu')]
        torch.rand(3, device=X.device), torch.zeros_like(X), X.new_zeros(2)
        torch.zeros(4, device=X.device).scatter_add_(0, X.long(), X)
        X.masked_fill(X > 1, 0), X.clone().uniform_(), X.amax(), X.sum()
        X.repeat_interleave(2)
    assert not found
