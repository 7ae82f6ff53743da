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


def test_what_is_on_the_cpu_is_looked_at_for_nothing():
    with crossings() as found:
        back = X.cpu()
        made = torch.zeros(4, device='cpu')
        made = made + torch.tensor([0, 1, 2, 3], device='cpu')
        assert float((back + made).sum()) == 12
        assert back.split(2)[1].tolist() == [2, 3]
        made[1] = back[2]
        assert bool((made > 1).any()) and made.cpu()[1] == 2
    assert found == dict(cpu=1)


@pytest.mark.parametrize(
    'name, action',
    [
        ('_local_scalar_dense', lambda host: float(host.to(X.device).sum())),
        ('_local_scalar_dense', lambda host: float((X * host[2]).sum())),
        ('_local_scalar_dense', lambda host: float(X.sum())),
        ('add of two devices', lambda host: host + X),
        ('copy_ to the CPU', lambda host: host.copy_(X)),
    ],
)
def test_the_cpu_and_the_device_are_told_apart(name, action):
    with crossings() as found:
        action(torch.ones(4, device='cpu'))
    assert found == {name: 1}
